"""The command's first module."""

import subprocess
import sys


def test_it_imports_nothing_heavy() -> None:
    """`imgcls --help` and the completion of verbs answer at once."""
    code = "import sys, imgcls.__main__; print(*{'torch', 'hydra', 'numpy', 'yaml'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
