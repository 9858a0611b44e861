"""pip brings wheels, says why it cannot, and leaves nothing at home."""

import zipfile

import pytest

from mlops.errors import EnvironmentFault
from mlops.pip_download import pip_download

METADATA = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
RUSTC = """#!/bin/sh
folder="${RUSTUP_HOME:-$HOME/.rustup}"
mkdir -p "$folder" && echo "version = 1" > "$folder/settings.toml" && echo "$folder" > "$SEEN"
"""


@pytest.fixture
def download(tmp_path, monkeypatch):
    """pip with a home of its own, one wheel to be had, and a `rustc` that behaves like rustup's."""
    for name in ("home", "wheels", "bin", "got"):
        (tmp_path / name).mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {"METADATA": METADATA, "WHEEL": WHEEL, "RECORD": ""}.items():
            wheel.writestr(f"tiny-1.0.dist-info/{name}", text)
    (tmp_path / "bin" / "rustc").write_text(RUSTC)
    (tmp_path / "bin" / "rustc").chmod(0o755)
    for name, value in {"HOME": "home", "PATH": "bin", "SEEN": "seen", "XDG_CACHE_HOME": "home/.cache"}.items():
        monkeypatch.setenv(name, f"{tmp_path / value}{':/usr/bin:/bin' if name == 'PATH' else ''}")
    options = ("--no-index", "--find-links", str(tmp_path / "wheels"))
    return lambda name: pip_download(*options, name, what=name, folder=tmp_path / "got", timeout_seconds=120)


def test_a_wheel_comes_and_the_home_folder_stays_empty(download, tmp_path):
    download("tiny==1.0")
    assert [path.name for path in (tmp_path / "got").glob("*.whl")] == ["tiny-1.0-py3-none-any.whl"]
    assert (tmp_path / "seen").exists(), "pip asks rustc"
    assert list((tmp_path / "home").iterdir()) == []


def test_what_cannot_be_had_is_said_in_pips_words(download):
    with pytest.raises(EnvironmentFault, match="pip could not download giant==2") as caught:
        download("giant==2")
    assert any("giant" in line for line in caught.value.items)
