"""A Hugging Face Hub on loopback, for tests: repositories in memory, and enough of the HTTP interface for the client.

It imitates what `huggingface_hub` asks of a Hub: repositories with commits, branches, tags and proposals (`refs/pr/1`),
private and gated ones; files with their hashes, by parts, and large ones (LFS) on a second host; atomic commits that
know their parent; collections and the tokens' owner; errors with `X-Error-Code`. It keeps no rights: whoever has
a token may do everything.

The fixture `fake_hub` gives an empty one, to which this process and its children talk:

    sha = fake_hub.commit("ann/net", {"config.json": b"{}"})      # a repository, and what lies in it
    fake_hub.fail("GET .*/resolve/", 503, times=2)                # what goes wrong: two answers, then none
    fake_hub.spoil("GET .*safetensors", cut=100)                  # a body that breaks off
    assert fake_hub.asked("HEAD /ann/net") == []                  # what the client has asked for

`messages` has requests and answers, `store` what lies on the Hub, `access` who may see it; `account`, `reading` and
`writing` answer requests, `faults` is what goes wrong on demand, and `server` puts it all behind two addresses.
"""

from __future__ import annotations

from tests.hub.fakehub.messages import Request, Response, as_json
from tests.hub.fakehub.server import FakeHub

__all__ = ["FakeHub", "Request", "Response", "as_json"]
