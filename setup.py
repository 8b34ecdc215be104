"""What pyproject.toml cannot say: in a wheel the folder conf/ is the package data of resnet8_quant.conf."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["resnet8_quant*"]), "resnet8_quant.conf"],
    package_dir={"resnet8_quant.conf": "conf"},
    package_data={
        "resnet8_quant": [
            "py.typed",
            "resources/*",
            "deploy/tflite/c/*",
            "sweep/report/templates/*",
            "sweep/search_plugin/**/*",
        ],
        "resnet8_quant.conf": ["**/*.yaml"],
    },
)
