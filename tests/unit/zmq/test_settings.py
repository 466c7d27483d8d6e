"""Settings of a ZeroMQ link: what is refused, and how; keys that are made for their owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from civitas_shm.errors import ConfigurationError
from civitas_shm_transports.zmq.settings import KEY_FILES, make_keys, read_keys, read_settings

pytest.importorskip("zmq")


def test_the_seeds_settings_are_the_defaults() -> None:
    settings = read_settings({})
    assert (settings.pub_addr, settings.sub_addr) == ("tcp://127.0.0.1:5559", "tcp://127.0.0.1:5560")
    assert settings.start_proxy
    assert settings.keys is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pub_adr": 1}, "unknown setting 'pub_adr'"),
        ({"pub_addr": "tcp://10.0.0.1:5559"}, r"beyond this machine.*curve: \{directory: PATH\}"),
        ({"sub_addr": "tcp://0.0.0.0:5559"}, "beyond this machine"),
        ({"sub_addr": "tcp://*:5559"}, "beyond this machine"),
        ({"pub_addr": "udp://127.0.0.1:1"}, "tcp://HOST:PORT or ipc://PATH"),
        ({"pub_addr": "tcp://127.0.0.1:99999"}, "tcp://HOST:PORT or ipc://PATH"),
        ({"pub_addr": 5559}, "no address of a proxy"),
        ({"pub_addr": "ipc:///tmp/x", "sub_addr": "ipc:///tmp/x"}, "needs two addresses"),
        ({"start_proxy": "yes"}, "true or false"),
        ({"curve": True}, "directory: PATH"),
        ({"curve": {"keys": "x"}}, r"unknown setting curve\.keys"),
        ({"curve": {"server_public_key": "x"}}, r"curve\.client_public_key is missing"),
        ({"curve": {"directory": "/x", "server_public_key": "y"}}, "give one of them"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read_settings(options)


@pytest.mark.parametrize("address", ["ipc:///tmp/x", "tcp://127.0.0.1:1", "tcp://[::1]:1", "tcp://localhost:1"])
def test_this_machine_needs_no_keys(address: str) -> None:
    assert read_settings({"pub_addr": address}).keys is None


def test_keys_are_made_for_their_owner_alone_and_never_again(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    settings = read_settings({"pub_addr": "tcp://0.0.0.0:5559", "curve": {"directory": str(directory)}})
    assert settings.keys is not None
    assert sorted(os.listdir(directory)) == sorted(KEY_FILES)
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    for secret in (settings.keys.server_secret_key, settings.keys.client_secret_key):
        assert secret not in repr(settings)
    make_keys(directory)
    assert read_keys(directory) == settings.keys


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path)
    (tmp_path / "client_secret_key").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_keys(tmp_path)


def test_where_no_proxy_is_started_its_secret_is_not_needed_and_nothing_is_made(tmp_path: Path) -> None:
    make_keys(tmp_path)
    (tmp_path / "server_secret_key").unlink()
    options = {"start_proxy": False, "curve": {"directory": str(tmp_path)}}
    assert read_settings(options).keys is not None
    (tmp_path / "client_public_key").unlink()
    with pytest.raises(ConfigurationError, match="copy all but server_secret_key"):
        read_settings(options)


def test_keys_given_by_themselves_are_for_hosts_without_the_proxy(tmp_path: Path) -> None:
    make_keys(tmp_path)
    keys = read_keys(tmp_path)
    given = {name: getattr(keys, name) for name in ("server_public_key", "client_public_key", "client_secret_key")}
    assert read_settings({"start_proxy": False, "curve": given}).keys is not None
    with pytest.raises(ConfigurationError, match="start_proxy: false"):
        read_settings({"curve": given})
    with pytest.raises(ConfigurationError, match="3 characters"):
        read_settings({"start_proxy": False, "curve": {**given, "client_secret_key": "abc"}})
