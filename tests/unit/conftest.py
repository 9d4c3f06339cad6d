"""The unit tests run on the host, as anyone, on files of their own."""

from __future__ import annotations

import os
import pathlib
import sys

import hypothesis

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "lib"))

os.umask(0o022)                    # files that the tests put down have the modes of an administrator's, whoever runs them

hypothesis.settings.register_profile("patient", deadline=None)         # how long one example takes says more of the machine than of the code
hypothesis.settings.load_profile("patient")
