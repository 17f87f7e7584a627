"""FAULTS F7: no test, and no process that a test starts, reaches anything but loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from pytest_socket import SocketConnectBlockedError

pytestmark = pytest.mark.skipif("STARZOO_TEST_HF_ENDPOINT" in os.environ, reason="a real Hub may be anywhere")
NOWHERE = "192.0.2.1"  # RFC 5737: an address of documents, not of machines


def test_f7_a_connection_off_loopback_fails_the_test() -> None:
    with pytest.raises(SocketConnectBlockedError, match=NOWHERE):
        socket.create_connection((NOWHERE, 80), timeout=1)


def test_f7_a_request_of_a_subprocess_goes_nowhere() -> None:
    request = f"from huggingface_hub import HfApi; HfApi(endpoint='https://{NOWHERE}').model_info('user/model')"
    process = subprocess.run([sys.executable, "-c", request], capture_output=True, text=True, check=False)
    assert process.returncode
    assert "Connection refused" in process.stderr  # by the proxy that is not there, at once
