"""Print pip constraints for the packages installed in two environments.

Usage: constraints.py PYTHON_3_10 PYTHON_3_11. Some packages have dropped Python 3.10, so its
versions differ. Every later Python gets those of 3.11, on which vLLM and Dragon are tested.
"""

import json
import subprocess
import sys

HEADER = """\
# The versions that continuous integration tests, written by `make constraints`.
# For the newest releases instead: make test CONSTRAINTS="""

LIST = ("-m", "pip", "list", "--format=json", "--exclude-editable", "--disable-pip-version-check")
NOT_LISTED = {"pip", "setuptools"}


def installed(python: str) -> dict[str, str]:
    """Return the versions of an environment's packages, without local labels such as `+cpu`."""
    done = subprocess.run((python, *LIST), check=True, stdout=subprocess.PIPE, text=True)
    return {
        package["name"].lower().replace("_", "-"): package["version"].partition("+")[0]
        for package in json.loads(done.stdout)
        if package["name"] not in NOT_LISTED
    }


def constraints(oldest: dict[str, str], later: dict[str, str]) -> list[str]:
    """Return a line for a package, or two if its versions differ.

    Args:
        oldest: Versions by package for Python 3.10.
        later: Versions by package for later Pythons.
    """
    lines = []
    for name in sorted(oldest | later):
        if oldest.get(name, later.get(name)) == later.get(name, oldest.get(name)):
            lines.append(f"{name}=={later.get(name) or oldest[name]}")
        else:
            lines.append(f"{name}=={oldest[name]}; python_version < '3.11'")
            lines.append(f"{name}=={later[name]}; python_version >= '3.11'")
    return lines


if __name__ == "__main__":
    print(HEADER, *constraints(*map(installed, sys.argv[1:3])), sep="\n")
