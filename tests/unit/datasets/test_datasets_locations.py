import pytest

from mlops.datasets.locations import load_locations, load_peers, prepare_dvc_files
from mlops.errors import DatasetError
from mlops.places import Places


def write_config(places, text):
    (places.root / ".dvc").mkdir(parents=True, exist_ok=True)
    (places.root / ".dvc" / "config").write_text(text)


def test_a_new_project_keeps_everything_below_its_state_folder(tmp_path):
    places = Places(tmp_path)
    prepare_dvc_files(places)
    locations = load_locations(places)
    assert locations.remotes == (("local", str(places.dvc_remote)),)
    assert all(url.startswith(str(places.state)) for url in locations.object_urls)
    assert "analytics = false" in (tmp_path / ".dvc" / "config").read_text()


def test_the_default_remote_comes_first_and_urls_stay_as_they_are(tmp_path):
    places = Places(tmp_path)
    write_config(
        places,
        "[core]\n    remote = b\n['remote \"a\"']\n    url = s3://bucket/x\n['remote \"b\"']\n    url = /srv/store\n",
    )
    locations = load_locations(places)
    assert locations.remotes == (("b", "/srv/store"), ("a", "s3://bucket/x"))
    assert locations.object_urls[0] == f"{tmp_path}/.dvc/cache/files/md5"


@pytest.mark.parametrize(("text", "words"), [("[core]\n", "names no remote"), ("nonsense", "cannot be read")])
def test_a_config_without_remote_is_refused(tmp_path, text, words):
    write_config(Places(tmp_path), text)
    with pytest.raises(DatasetError, match=words):
        load_locations(Places(tmp_path))


def test_no_config_is_said(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        load_locations(Places(tmp_path))


def test_what_a_project_already_says_is_kept(tmp_path):
    write_config(Places(tmp_path), "mine")
    prepare_dvc_files(Places(tmp_path))
    assert (tmp_path / ".dvc" / "config").read_text() == "mine"


def test_peers_are_named_by_the_environment():
    assert load_peers({}) == ()
    named = {"MLOPS_DATA_PEERS": "/mnt/b/files/md5/, http://c:1/files/md5,"}
    assert load_peers(named) == ("/mnt/b/files/md5", "http://c:1/files/md5")
