"""`cloister inspect`: every field by its name, and no trust in any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloister.cli.inspect import NOTICE, TRUST
from cloister.errors import EXIT_USAGE, EXIT_VERIFICATION
from examined import run, steers, write_bundle, write_policy
from shared_data import vectors
from vector_kinds import VECTORS

pytestmark = pytest.mark.filterwarnings(r"ignore:'click\.utils:DeprecationWarning")

READ = sorted(name for name, kind in VECTORS.items() if kind is not None)
MALFORMED = {"google-go-tdx-guest/tdx_prod_quote_SPR_E4.dat": "39 bytes behind its end"}


@pytest.mark.parametrize("name", READ)
def test_every_captured_file_is_shown_and_says_that_nothing_is_verified(name: str) -> None:
    ran = run("inspect", str(vectors(name)))
    if name in MALFORMED:
        assert (ran.code, ran.out) == (EXIT_VERIFICATION, "")
        assert MALFORMED[name] in ran.err
        return
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == NOTICE
    assert steers(ran.out) == []
    assert len(ran.out) < 400_000


def fields(name: str, *more: str) -> dict[str, dict[str, tuple[str, str]]]:
    ran = run("inspect", str(vectors(name)), "--json", *more)
    found = json.loads(ran.out)
    assert (found["format"], found["trust"]) == ("cloister/inspection/v1", TRUST)
    assert "verified" not in found
    return {
        section["title"]: {one["name"]: (one["value"], one["meaning"]) for one in section["fields"]}
        for section in found["sections"]
    }


def test_bits_are_named() -> None:
    tdx = fields("google-go-tdx-guest/../dstack/quote-report.json")["Report"]
    assert tdx["td_attributes"] == ("0000001000000000", "SEPT_VE_DISABLE")
    assert tdx["xfam"][1] == "x87, SSE, AVX, AVX-512, PKRU, AMX"
    sgx = fields("coco-trustee/occlum_quote.dat")["Report"]
    assert "DEBUG (readable from outside)" in sgx["attributes"][1]
    snp = fields("google-go-sev-guest/attestation.bin")["Report"]
    assert "DEBUG (readable from outside)" in snp["policy"][1]


def test_nested_certificates_show_whom_they_name() -> None:
    chain = fields("phala-dcap-qvl/tdx_quote")["Certificates"]
    assert "Intel SGX PCK Certificate" in chain["0 subject"][0]
    assert chain["2 issuer"][0] == "itself"
    rim = fields("nvidia-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml")
    assert "HCC RIM L4 Signer" in rim["Certificates"]["0 subject"][0]
    assert rim["Manifest"]["version"][0] == "550.144.03"


def test_an_event_log_shows_its_events() -> None:
    events = " ".join(run("inspect", str(vectors("coco-trustee/CCEL_data_gcp"))).out.split())
    assert "EV_EFI_VARIABLE_BOOT" in events
    assert "the digest does not vouch for the data" in events


def test_long_values_and_lists_are_cut_with_a_count_unless_all_is_asked_for(tmp_path: Path) -> None:
    name = str(vectors("coco-trustee/tcbInfo.json"))
    short, full = run("inspect", name).out, run("inspect", name, "--full").out
    assert "more; --full shows them" in short or "--full shows them" in short
    assert "--full" not in full
    assert len(full) > len(short)


def test_a_bundle_shows_its_parts(tmp_path: Path) -> None:
    shown = run("inspect", write_bundle(tmp_path)).out
    for heading in (
        "Quote: Report",
        "Key material",
        "Launch event log: Launch events",
        "Endorsements: tcb_info",
    ):
        assert heading in shown


def test_a_damaged_part_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    path = Path(write_bundle(tmp_path))
    document = json.loads(path.read_text())
    document["endorsements"] = "AAAA"
    path.write_text(json.dumps(document))
    shown = run("inspect", str(path))
    assert shown.code == 0
    assert "cannot be read" in shown.out
    assert "Quote: Report" in shown.out


def test_a_policy_is_explained_elsewhere(tmp_path: Path) -> None:
    ran = run("inspect", write_policy(tmp_path))
    assert ran.code == EXIT_USAGE
    assert "cloister policy explain" in ran.err


def test_standard_input_is_read_for_a_dash() -> None:
    ran = run("inspect", "-", stdin=vectors("virtee-sev/report_milan.hex").read_bytes())
    assert (ran.code, "SEV-SNP attestation report" in ran.out) == (0, True)
