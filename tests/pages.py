"""What README and docs/ show: requests with their answers below them."""

import re

from tests.tools import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
HTTP = (REPOSITORY / "docs" / "http.md").read_text()
ANSWERED = re.compile(r"```sh\n(curl .*?)\n```\n\n```json\n(.*?)\n```\n", re.DOTALL)
COMMANDS = ANSWERED.findall(README) + ANSWERED.findall(HTTP)
