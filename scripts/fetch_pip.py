"""Fetches one pinned pip wheel with nothing but the standard library, for a Python that has neither pip nor ensurepip.

Asks the package index that pip would ask (PIP_INDEX_URL, pip's configuration files, else PyPI), and accepts only
the pinned digest. Prints the path of the wheel. Leaves to others: installing it (setup.sh).
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

VERSION = "25.3"
SHA256 = "9655943313a94722b7774661c21049070f6bbb0a1516bf02f7c8d5d9201514cd"
WHEEL = f"pip-{VERSION}-py3-none-any.whl"


def find_index() -> str:
    """The simple index that pip would use."""
    if os.environ.get("PIP_INDEX_URL"):
        return os.environ["PIP_INDEX_URL"]
    parser = configparser.RawConfigParser()
    home = Path(os.environ.get("HOME") or "/")
    files = ["/etc/xdg/pip/pip.conf", "/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    parser.read([*map(str, files), *filter(None, [os.environ.get("PIP_CONFIG_FILE")])])
    return parser.get("global", "index-url", fallback="https://pypi.org/simple")


def fetch(target: Path) -> Path:
    """The verified wheel in `target`.

    Raises:
        OSError: The index cannot be reached.
        ValueError: It does not offer the pinned wheel.
    """
    page_url = f"{find_index().rstrip('/')}/pip/"
    with urllib.request.urlopen(page_url, timeout=60) as answer:  # noqa: S310 - the index the user configured
        page = answer.read().decode()
        base = answer.url
    links = [link for link in re.findall(r'href="([^"]+)"', page) if link.split("#")[0].endswith(WHEEL)]
    if not links:
        raise ValueError(f"{page_url} does not offer {WHEEL}")
    with urllib.request.urlopen(urljoin(base, links[0].split("#")[0]), timeout=60) as answer:  # noqa: S310 - as above
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{WHEEL} from {page_url} has another digest than the pinned one")
    wheel = target / WHEEL
    wheel.write_bytes(content)
    return wheel


if __name__ == "__main__":
    try:
        print(fetch(Path(sys.argv[1])))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot fetch pip: {error}")
