"""docs/api.md: every method is on the page, and its examples do what they say."""

import re
import unittest

from gimbal_client import ROOT, api
from server import Server

PAGE = (ROOT / "docs/api.md").read_text()


class Examples(unittest.TestCase):
    def test_every_method_has_a_heading(self):
        headings = re.findall(r"^### (\S+)$", PAGE, re.MULTILINE)
        services = api.DESCRIPTOR.services_by_name.values()
        methods = [f"{service.name}.{method.name}" for service in services for method in service.methods]
        self.assertEqual(sorted(headings), sorted(methods))

    def test_the_examples_run_from_top_to_bottom(self):
        blocks = re.finditer(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        namespace, count = {}, 0
        server = Server()
        self.addCleanup(server.stop)
        for block in blocks:
            line = PAGE.count("\n", 0, block.start(1))
            # Empty lines before it, so that a failure names the page's line.
            text = "\n" * line + block.group(1).replace("127.0.0.1:8010", server.grpc)
            exec(compile(text, "docs/api.md", "exec"), namespace)
            count += 1
        namespace["channel"].close()
        self.assertGreater(count, 20)


if __name__ == "__main__":
    unittest.main()
