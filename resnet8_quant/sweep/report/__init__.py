"""The page that answers which configuration to ship: report.html, one file that needs no network.

In: the jobs of one or more sweeps. Out: the page, and on request each of its plots as PNG and SVG.
"""
