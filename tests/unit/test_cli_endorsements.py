"""`cloister endorsements`, against the stand-in of the vendors' services."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.attester.simulated import SimulatedPlatform
from cloister.cli import main
from cloister.endorsements.nvidia import ocsp_targets, parse_nvidia_endorsements, rim_ids
from cloister.endorsements.roots import simulated_root
from cloister.evidence.bundle import EvidenceBundle, NonceProof, encode_bundle
from cloister.evidence.nvidia import encode_device_evidence, parse_sdk_evidence
from cloister.verifier import intel
from cloister.verifier.rules import IntelRules
from shared_data import vectors
from vendor_services import VendorServices, status

RULES = IntelRules(min_tcb_evaluation_number=1)


@pytest.fixture(scope="module")
def vendor() -> SimulatedPlatform:
    return SimulatedPlatform.generate(now=int(time.time()))


@pytest.fixture
def quote(vendor: SimulatedPlatform, tmp_path: Path) -> Path:
    path = tmp_path / "evidence"
    path.write_bytes(vendor.tee("tdx").quote(bytes(64)).quote)
    return path


@pytest.fixture
def services(vendor: SimulatedPlatform) -> Iterator[VendorServices]:
    with VendorServices() as running:
        now = int(time.time())
        running.serve_intel(
            vendor.collateral(now, "tdx"), tee="tdx", fmspc=vendor.hardware.fmspc.hex(), ca="platform"
        )
        yield running


def run(services: VendorServices | None, cache: Path, *arguments: object) -> int:
    base = (
        [] if services is None else ["--pcs", services.base, "--rim", services.base, "--ocsp", services.base]
    )
    with pytest.raises(SystemExit) as caught:
        main(["endorsements", "--cache", str(cache), *base, *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_fetch_writes_what_verifies(
    services: VendorServices,
    vendor: SimulatedPlatform,
    quote: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(services, tmp_path / "cache", "fetch", quote, "--out", tmp_path / "out.json", "--json") == 0
    written = last_json(capsys)["written"]
    document = (tmp_path / "out.json").read_bytes()
    assert written[0]["bytes"] == len(document)
    root = simulated_root(vendor.root_sha256)
    claims = intel.verify(quote.read_bytes(), document, root=root, now=int(time.time()), rules=RULES)
    assert claims.collateral_expires == written[0]["ends"]


def test_an_air_gapped_site_gets_by_with_an_exported_file(
    services: VendorServices, quote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried, site = tmp_path / "bundle.json", tmp_path / "site"
    assert run(services, tmp_path / "cache", "export", quote, "--out", carried) == 0
    assert "4 endorsements" in capsys.readouterr().out
    assert run(None, site, "--offline", "fetch", quote, "--out", tmp_path / "a") == 3
    error = capsys.readouterr().err
    assert "offline, and the cache lacks" in error
    assert "cloister endorsements import" in error
    assert run(None, site, "import", carried, "--json") == 0
    assert last_json(capsys)["taken"] == 4
    assert run(None, site, "--offline", "fetch", quote, "--out", tmp_path / "a") == 0
    assert run(services, tmp_path / "cache", "fetch", quote, "--out", tmp_path / "b") == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    capsys.readouterr()
    assert run(None, site, "import", carried, "--json") == 0
    assert last_json(capsys) == {"cache": str(site), "taken": 0, "not_newer": 4, "ended": 0}


def test_a_pccs_may_be_named_as_other_tools_name_it(
    services: VendorServices, quote: Path, tmp_path: Path
) -> None:
    address = f"{services.base}/sgx/certification/v4/"
    arguments = ("--pcs", address, "fetch", quote, "--out", tmp_path / "out")
    assert run(None, tmp_path / "cache", *arguments) == 0


def test_show_lists_the_cache_and_a_file(
    services: VendorServices, quote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, carried = tmp_path / "cache", tmp_path / "bundle.json"
    assert run(None, cache, "show") == 0
    assert "nothing is there" in capsys.readouterr().out
    run(services, cache, "export", quote, "--out", carried)
    run(services, cache, "export", "--out", tmp_path / "all.json")
    capsys.readouterr()
    assert run(None, cache, "show", "--json") == 0
    in_cache = last_json(capsys)["endorsements"]
    assert run(None, cache, "show", carried, "--json") == 0
    assert last_json(capsys)["endorsements"] == in_cache
    assert [row["name"] for row in in_cache] == [
        "intel/pckcrl/platform",
        "intel/qe/tdx",
        "intel/rootcrl",
        f"intel/tcb/tdx/{'c1015e000000'}",
    ]
    assert run(None, cache, "show", tmp_path / "all.json") == 0
    assert "intel/rootcrl" in capsys.readouterr().out


def test_a_bundle_with_devices_gives_two_documents(
    services: VendorServices, vendor: SimulatedPlatform, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = parse_sdk_evidence(vectors("nvidia-attestation-sdk/hopper_evidence.json").read_bytes())
    rim = vectors("nvidia-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml").read_bytes()
    for name in rim_ids(devices.devices[0]):
        services.serve_rim(name, rim)
    services.serve_ocsp(ocsp_targets(devices, [rim]), now=int(time.time()))
    bundle = EvidenceBundle(
        tee="tdx",
        quote=vendor.tee("tdx").quote(bytes(64)).quote,
        key_material=b"",
        nonce_proof=NonceProof(index=0, size=1, path=()),
        device_evidence=encode_device_evidence(devices),
    )
    path, cache = tmp_path / "bundle.json", tmp_path / "cache"
    path.write_bytes(encode_bundle(bundle))
    assert run(services, cache, "fetch", path, "--out", tmp_path / "cpu") == 2
    assert "--devices-out" in capsys.readouterr().err
    arguments = ("fetch", path, "--out", tmp_path / "cpu", "--devices-out", tmp_path / "gpu")
    assert run(services, cache, *arguments) == 0
    found = parse_nvidia_endorsements((tmp_path / "gpu").read_bytes())
    assert found.rims == (rim,)
    assert len(found.ocsp) == len(ocsp_targets(devices, [rim]))
    alone = tmp_path / "sdk.json"
    alone.write_bytes(vectors("nvidia-attestation-sdk/hopper_evidence.json").read_bytes())
    assert run(services, cache, "--no-ocsp", "fetch", alone, "--out", tmp_path / "gpu2") == 0
    assert parse_nvidia_endorsements((tmp_path / "gpu2").read_bytes()).ocsp == ()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fetch", "EVIDENCE", "--out", "/nowhere/x"), 2, "cannot write"),
        (("fetch", "/nowhere/x", "--out", "OUT"), 2, "cannot read"),
        (("export", "--out", "OUT"), 3, "name the evidence"),
        (("import", "EVIDENCE"), 3, "endorsements bundle"),
        (("show", "EVIDENCE"), 3, "endorsements bundle"),
        (("--allow-http", "--early", "--evaluation", "17", "show"), 2, "exclude each other"),
        (("--kds", "http://kds.example", "show"), 2, "plain http beyond"),
        (("--ca-file", "/nowhere/x", "fetch", "EVIDENCE", "--out", "OUT"), 2, "--ca-file or --proxy"),
        (("--offline", "--refresh", "fetch", "EVIDENCE", "--out", "OUT"), 2, "exclude each other"),
        (("fetch", "CRL", "--out", "OUT"), 3, "no evidence that vendors endorse"),
    ],
)
def test_what_cannot_be_is_one_line_with_its_exit_code(
    services: VendorServices,
    quote: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    crl = tmp_path / "crl"
    crl.write_bytes(vectors("google-go-tdx-guest/rootcrl.der").read_bytes())
    names = {"EVIDENCE": str(quote), "OUT": str(tmp_path / "out"), "CRL": str(crl)}
    assert run(services, tmp_path / "cache", *(names.get(one, one) for one in arguments)) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_service_that_does_not_know_the_platform_is_no_network_error(
    services: VendorServices, quote: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    services.fail("/tdx/certification/v4/tcb", status(404))
    assert run(services, tmp_path / "cache", "fetch", quote, "--out", tmp_path / "x", "--json") == 3
    assert json.loads(capsys.readouterr().err)["layer"] == "endorsements"


def test_the_default_cache_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, expected in ((str(tmp_path / "xdg"), tmp_path / "xdg"), ("relative", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(SystemExit):
            main(["endorsements", "show", "--json"])
        assert last_json(capsys)["source"] == str(expected / "cloister" / "endorsements")
