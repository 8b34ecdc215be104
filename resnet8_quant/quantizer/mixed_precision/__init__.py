"""Mixed precision: which layer gets how many bits.

sensitivity (what does it cost to narrow one layer alone) > budget (the best widths under a limit).
"""
