"""Runs the tests beside this file; ends with a line in cargo's form, so that one count covers both."""

import pathlib
import sys
import unittest

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here))
result = unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(unittest.defaultTestLoader.discover(here))
failed = len(result.failures) + len(result.errors)
verdict = "ok" if result.wasSuccessful() and result.testsRun else "FAILED"
skipped = len(result.skipped)
print(f"test result: {verdict}. {result.testsRun - failed - skipped} passed; {failed} failed; {skipped} ignored")
sys.exit(verdict != "ok")
