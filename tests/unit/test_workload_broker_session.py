"""What a run says of itself to its broker before it shows evidence."""

from __future__ import annotations

import json
from typing import cast

import httpx2
import pytest

from broker_parts import policy_for, workload
from cloister.appraisal.policy import load_policy
from cloister.channel.transport import SealedClient
from cloister.errors import NetworkError
from cloister.evidence.bundle import TEE_KINDS, TeeKind
from cloister.workload.broker_session import open_session


class Channel:
    """Hears one request, and is gone."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def request(self, _method: str, _url: str, *, content: bytes, headers: dict[str, str]) -> httpx2.Response:
        self.heard.append(content)
        raise httpx2.ReadError("gone")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("tee", TEE_KINDS)
def test_the_broker_is_told_the_kind_of_tee_whose_evidence_follows(tee: TeeKind) -> None:
    channel = Channel()
    session = open_session(
        "http://broker.test",
        [load_policy(policy_for(workload()), name="test")],
        workload(),
        tee=tee,
        dial=lambda _url, policy: cast(SealedClient, channel),
    )
    with pytest.raises(NetworkError):
        session.keys.key("kbs:///a/b/c")
    assert json.loads(channel.heard[0])["tee"] == tee
