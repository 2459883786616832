"""Endorsements fetched over real sockets from a stand-in of the vendors' services, and then verified."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

import simulated_nvidia
import simulated_snp
from cloister.endorsements.airgap import encode_bundle, parse_bundle
from cloister.endorsements.amd import encode_snp_endorsements, parse_snp_endorsements
from cloister.endorsements.asking import Entry, pem_of
from cloister.endorsements.cache import Cache
from cloister.endorsements.fetch import Fetcher, Limits
from cloister.endorsements.intel import parse_collateral
from cloister.endorsements.nvidia import ocsp_targets, parse_nvidia_endorsements, rim_ids
from cloister.endorsements.plans import device_document_ends, document_ends, part_ends
from cloister.endorsements.roots import AMD_ROOTS, INTEL_ROOT, Root, simulated_root
from cloister.endorsements.services import Services
from cloister.errors import CloisterError, EndorsementError, NetworkError, UsageError
from cloister.evidence.nvidia import encode_device_evidence, parse_device_evidence, parse_sdk_evidence
from cloister.evidence.snp import parse_report
from cloister.verifier import intel, nvidia, snp
from cloister.verifier.rules import IntelRules
from intel_vectors import SERVER, at, collateral, quote
from shared_data import vectors
from simulated_evidence import NOW, REPORT_DATA, platform
from vendor_services import (
    Answer,
    BrokenChunk,
    Changed,
    Closed,
    Cut,
    Drip,
    Endless,
    Says,
    VendorServices,
    amd_list,
    moment,
    status,
)

DAY = 86_400
SUMMER = at("2025-07-01")
TDX = "b0c06f000000"
TCB = f"/tdx/certification/v4/tcb?fmspc={TDX}"
SIMULATED = "c1015e000000"


@pytest.fixture
def services() -> Iterator[VendorServices]:
    with VendorServices() as running:
        yield running


class Waits(list[float]):
    """What the fetcher would have slept; time does not pass."""


def fetcher(running: VendorServices, *, now: float = SUMMER, **changes: Any) -> Fetcher:
    settings: dict[str, Any] = {
        "services": running.addresses(),
        "clock": lambda: now,
        "sleep": lambda _: None,
        "jitter": lambda: 0.0,
        "limits": Limits(total=30, attempt=5, read=2),
    }
    return Fetcher(**{**settings, **changes})


def serve_tdx(services: VendorServices) -> bytes:
    captured = collateral("tdx_quote_collateral")
    services.serve_intel(captured, tee="tdx", fmspc=TDX, ca="platform")
    return captured


def tdx_quote() -> bytes:
    return quote("phala-dcap-qvl/tdx_quote")


class TestIntel:
    @pytest.mark.parametrize(
        ("name", "tee", "fmspc", "ca", "statuses"),
        [
            ("tdx_quote", "tdx", TDX, "platform", {"UpToDate"}),
            ("sgx_quote", "sgx", "00a067110000", "processor", {"ConfigurationAndSWHardeningNeeded"}),
        ],
    )
    def test_what_was_fetched_for_a_captured_quote_verifies_at_its_time(
        self, services: VendorServices, name: str, tee: Any, fmspc: str, ca: str, statuses: set[str]
    ) -> None:
        captured = collateral(f"{name}_collateral")
        services.serve_intel(captured, tee=tee, fmspc=fmspc, ca=ca)
        with fetcher(services) as fetch:
            document = fetch.endorsements(tee, quote(f"phala-dcap-qvl/{name}"))
        rules = replace(SERVER, accepted_statuses=frozenset(statuses))
        claims = intel.verify(
            quote(f"phala-dcap-qvl/{name}"), document, root=INTEL_ROOT, now=SUMMER, rules=rules
        )
        assert claims.tcb_status in statuses
        assert claims.details["fmspc"] == fmspc
        assert document_ends(tee, document) == claims.collateral_expires
        assert services.asked() == 4

    def test_signed_bodies_arrive_byte_for_byte(self, services: VendorServices) -> None:
        captured = json.loads(serve_tdx(services))
        with fetcher(services) as fetch:
            fetched = parse_collateral(fetch.endorsements("tdx", tdx_quote()))
        for name in ("tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature", "root_ca_crl"):
            assert getattr(fetched, name) == captured[name]

    @pytest.mark.parametrize("tee", ["tdx", "sgx"])
    def test_the_simulated_vendor_can_be_asked_and_verifies(self, services: VendorServices, tee: Any) -> None:
        vendor = platform()
        services.serve_intel(vendor.collateral(NOW, tee), tee=tee, fmspc=SIMULATED, ca="platform")
        evidence = vendor.tee(tee, clock=lambda: NOW).quote(REPORT_DATA)
        with fetcher(services, now=NOW) as fetch:
            document = fetch.endorsements(tee, evidence.quote)
        claims = intel.verify(
            evidence.quote,
            document,
            root=simulated_root(vendor.root_sha256),
            now=NOW,
            rules=IntelRules(min_tcb_evaluation_number=1),
        )
        assert claims.simulated

    def test_the_roots_list_comes_from_the_distribution_point_where_it_is_named(
        self, services: VendorServices
    ) -> None:
        serve_tdx(services)
        named = services.addresses(intel_root_crl=f"{services.base}/IntelSGXRootCA.der")
        with fetcher(services, services=named) as fetch:
            document = fetch.endorsements("tdx", tdx_quote())
        intel.verify(tdx_quote(), document, root=INTEL_ROOT, now=SUMMER, rules=SERVER)
        assert services.asked("/IntelSGXRootCA.der") == 1
        assert services.asked("/sgx/certification/v4/rootcacrl") == 0

    @pytest.mark.parametrize(
        ("choice", "query"),
        [
            ({"intel_update": "early"}, "update=early"),
            ({"intel_evaluation_number": 18}, "tcbEvaluationDataNumber=18"),
        ],
    )
    def test_the_wanted_evaluation_is_asked_for_and_kept_apart(
        self, services: VendorServices, tmp_path: Path, choice: dict[str, Any], query: str
    ) -> None:
        serve_tdx(services)
        services.routes[f"{TCB}&{query}"] = services.routes[TCB]
        services.routes[f"/tdx/certification/v4/qe/identity?{query}"] = services.routes[
            "/tdx/certification/v4/qe/identity"
        ]
        cache = Cache(tmp_path / "cache")
        for addresses in (services.addresses(), services.addresses(**choice)):
            with fetcher(services, services=addresses, cache=cache) as fetch:
                fetch.endorsements("tdx", tdx_quote())
        assert services.asked(f"{TCB}&{query}") == 1
        assert services.asked("/sgx/certification/v4/pckcrl") == 1  # which evaluation is the same to a list

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            pytest.param(lambda a: replace(a, headers={}), "no header tcb-info-issuer-chain", id="no chain"),
            pytest.param(
                lambda a: replace(a, headers={"TCB-Info-Issuer-Chain": "%2D%2Dno"}), "not PEM", id="bad chain"
            ),
            pytest.param(lambda a: replace(a, body=a.body[:-1]), "not JSON", id="JSON cut"),
            pytest.param(
                lambda a: replace(a, body=a.body + b"x"), "not JSON", id="something behind the JSON"
            ),
            pytest.param(
                lambda a: replace(a, body=a.body.replace(b"tcbInfo", b"tcbinfo", 1)),
                "no signed tcbInfo",
                id="another name",
            ),
            pytest.param(
                lambda a: replace(a, body=b'{"tcbInfo":{},"tcbInfo":{},"signature":""}'),
                "names a field twice",
                id="a member twice",
            ),
            pytest.param(
                lambda a: replace(a, body=a.body.replace(b"B0C06F000000", b"00A067110000")),
                "of another fmspc",
                id="another platform",
            ),
            pytest.param(
                lambda a: replace(a, body=a.body.replace(b'"id":"TDX"', b'"id":"SGX"')),
                "of another id",
                id="another TEE",
            ),
            pytest.param(
                lambda a: replace(a, body=a.body.replace(b"2025-07-19T", b"July 19 at ")),
                "nextUpdate is not a time",
                id="no end",
            ),
            pytest.param(lambda a: replace(a, body=b"\xff\xfe"), "not UTF-8", id="not text"),
            pytest.param(lambda a: replace(a, body=b"[" * 5000), "nested deeper", id="nested"),
        ],
    )
    def test_wrong_content_is_refused_by_name_and_never_cached(
        self, services: VendorServices, tmp_path: Path, edit: Any, message: str
    ) -> None:
        serve_tdx(services)
        cache = Cache(tmp_path / "cache")
        services.fail(TCB, Changed(edit))
        with fetcher(services, cache=cache) as fetch:
            with pytest.raises(EndorsementError, match=message) as caught:
                fetch.endorsements("tdx", tdx_quote())
            assert "127.0.0.1" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert cache.read("intel", f"tcb/tdx/{TDX}") is None
            fetch.endorsements("tdx", tdx_quote())  # and the next answer is right


UNREACHABLE = "cannot fetch TDX TCB info"


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "error", "message", "tries"),
        [
            pytest.param(status(404), EndorsementError, "Intel has no TDX TCB info", 1, id="404"),
            pytest.param(status(461), EndorsementError, "Intel has no TDX TCB info", 1, id="PCCS without it"),
            pytest.param(status(400), EndorsementError, "status 400", 1, id="400"),
            pytest.param(status(401), EndorsementError, "status 401", 1, id="401"),
            pytest.param(status(500), NetworkError, "status 500", 4, id="500"),
            pytest.param(status(503), NetworkError, "status 503", 4, id="503"),
            pytest.param(status(429), NetworkError, "status 429", 4, id="429"),
            pytest.param(
                status(429, Retry_After="7200"), NetworkError, "asks to wait 7200 s", 1, id="429 for long"
            ),
            pytest.param(
                status(302, Location="https://example.com/"),
                EndorsementError,
                "redirects .* elsewhere",
                1,
                id="redirect elsewhere",
            ),
            pytest.param(
                Says(Answer(b"<html>log in</html>", "text/html")),
                EndorsementError,
                "sent text/html for",
                1,
                id="login page",
            ),
            pytest.param(
                Says(Answer(b"<html>log in</html>", "application/json")),
                EndorsementError,
                "is not JSON",
                1,
                id="page that says JSON",
            ),
            pytest.param(
                Says(Answer(b"{}", "")), EndorsementError, "sent nothing named", 1, id="no media type"
            ),
            pytest.param(
                Says(Answer(b"{}", "application/json", headers={"Content-Encoding": "gzip"})),
                EndorsementError,
                "compressed, unasked",
                1,
                id="compressed",
            ),
            pytest.param(Cut(), EndorsementError, "ended too early", 4, id="shorter than announced"),
            pytest.param(BrokenChunk(), EndorsementError, "ended too early", 4, id="broken chunk"),
            pytest.param(
                Says(Answer(b" " * 200_000, "application/json")),
                EndorsementError,
                "over its bound",
                1,
                id="announced too large",
            ),
            pytest.param(Endless(), EndorsementError, "over its bound", 1, id="endless"),
            pytest.param(Closed(), NetworkError, UNREACHABLE, 4, id="closed at once"),
        ],
    )
    def test_each_failure_is_one_clear_line_after_a_bounded_number_of_tries(
        self, services: VendorServices, fault: Any, error: type[CloisterError], message: str, tries: int
    ) -> None:
        serve_tdx(services)
        services.fail(TCB, *[fault] * 9)
        with fetcher(services) as fetch, pytest.raises(error, match=message) as caught:
            fetch.endorsements("tdx", tdx_quote())
        assert type(caught.value) is error
        assert services.asked(TCB) == tries
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize(
        "fault", [status(503), status(500), Cut(), BrokenChunk(), Closed()], ids=lambda one: repr(one)[:30]
    )
    def test_a_failure_that_passes_is_not_seen(self, services: VendorServices, fault: Any) -> None:
        serve_tdx(services)
        services.fail(TCB, fault, fault)
        with fetcher(services) as fetch:
            document = fetch.endorsements("tdx", tdx_quote())
        intel.verify(tdx_quote(), document, root=INTEL_ROOT, now=SUMMER, rules=SERVER)

    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("3", 3.0),
            (format_datetime(moment(SUMMER + 11), usegmt=True), 11.0),
            (format_datetime(moment(SUMMER - 90), usegmt=True), 0.0),
            ("soon", 0.25),
            ("-5", 0.25),
        ],
    )
    def test_retry_after_is_honoured_in_seconds_and_as_a_date(
        self, services: VendorServices, header: str, expected: float
    ) -> None:
        serve_tdx(services)
        services.fail(TCB, status(429, Retry_After=header))
        waits = Waits()
        with fetcher(services, sleep=waits.append) as fetch:
            fetch.endorsements("tdx", tdx_quote())
        assert waits == [expected]

    def test_without_it_waits_double(self, services: VendorServices) -> None:
        serve_tdx(services)
        services.fail(TCB, *[status(503)] * 3)
        waits = Waits()
        with fetcher(services, sleep=waits.append) as fetch:
            fetch.endorsements("tdx", tdx_quote())
        assert waits == [0.25, 0.5, 1.0]

    def test_an_error_does_not_wait_for_another_parts_long_pause(self, services: VendorServices) -> None:
        serve_tdx(services)
        services.fail("/sgx/certification/v4/pckcrl", status(429, Retry_After="25"))
        services.fail(TCB, status(404))
        fetch = fetcher(services, sleep=None)
        with fetch, pytest.raises(EndorsementError, match="Intel has no TDX TCB info"):
            fetch.endorsements("tdx", tdx_quote())
        assert not any(
            thread.name == "cloister-endorsements" and not thread.daemon for thread in threading.enumerate()
        )

    @pytest.mark.parametrize("fault", [Drip(), Drip(head=True)], ids=["body", "head"])
    def test_a_slow_drip_ends_within_the_time_in_all(self, services: VendorServices, fault: Drip) -> None:
        serve_tdx(services)
        services.fail(TCB, *[fault] * 9)
        limits = Limits(total=1.0, attempt=0.4, read=2)
        with (
            fetcher(services, limits=limits) as fetch,
            pytest.raises(NetworkError, match=r"in time|too slowly|not enough"),
        ):
            fetch.endorsements("tdx", tdx_quote())

    def test_a_refused_connection_is_a_network_error(self) -> None:
        with socket.socket() as taken:  # bound, never listening
            taken.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{taken.getsockname()[1]}"
            fetch = Fetcher(services=Services(intel=address), sleep=lambda _: None)
            with fetch, pytest.raises(NetworkError, match=r"cannot fetch .* from 127\.0\.0\.1"):
                fetch.endorsements("tdx", tdx_quote())

    def test_a_name_that_does_not_resolve_in_time_is_a_network_error(
        self, services: VendorServices, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hanging = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: hanging.wait(100))
        limits = Limits(total=0.5, attempt=0.2)
        with fetcher(services, limits=limits) as fetch, pytest.raises(NetworkError):
            fetch.endorsements("tdx", tdx_quote())
        assert not hanging.is_set()  # the resolver still has not answered
        hanging.set()

    @pytest.mark.parametrize(
        "address", ["http://pccs.example", "ftp://x", "https://", "https://x/", "https://x?y", "x"]
    )
    def test_addresses_that_are_no_https_base_are_refused(self, address: str) -> None:
        with pytest.raises(UsageError, match="the address of intel"):
            Services(intel=address)

    def test_plain_http_is_allowed_on_this_machine_or_in_words(self) -> None:
        Services(intel="http://[::1]:8081", amd="http://localhost:1")
        Services(intel="http://pccs.example", allow_http=True)

    def test_the_environment_names_no_proxy(
        self, services: VendorServices, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        serve_tdx(services)
        with fetcher(services) as fetch:
            fetch.endorsements("tdx", tdx_quote())


class TestAmd:
    def serve(self, services: VendorServices, report: bytes, *, now: int) -> bytes:
        # The levels and the chip stand where AMD's table 23 has them: independent of the reader under test.
        tcb, chip = report[0x180:0x188], report[0x1A0:0x1E0]
        query = f"blSPL={tcb[0]:02d}&teeSPL={tcb[1]:02d}&snpSPL={tcb[6]:02d}&ucodeSPL={tcb[7]:02d}"
        vcek = vectors("virtee-sev/vcek_milan.der").read_bytes()
        services.serve_amd(
            "Milan",
            chip=chip.hex(),
            query=query,
            vcek=vcek,
            chain=vectors("virtee-sev/cert_chain_milan").read_bytes(),
            crl=amd_list(now),
        )
        return vcek

    def report(self) -> bytes:
        return bytes.fromhex(vectors("virtee-sev/report_milan.hex").read_text().strip())

    def test_what_was_fetched_for_a_captured_report_verifies(self, services: VendorServices) -> None:
        now = at("2025-07-01")
        vcek = self.serve(services, self.report(), now=now)
        with fetcher(services, now=now) as fetch:
            document = fetch.endorsements("snp", self.report())
        found = parse_snp_endorsements(document)
        assert found.signing_key == vcek
        assert found.crl == amd_list(now)
        # Nobody captured AMD's list; the stand-in's is signed by nobody, and the verifier must see that.
        with pytest.raises(CloisterError):
            snp.verify(self.report(), document, roots=AMD_ROOTS, now=now, revocation_required=True)
        without = encode_snp_endorsements(structs.replace(found, crl=b""))
        claims = snp.verify(self.report(), without, roots=AMD_ROOTS, now=now, revocation_required=False)
        assert claims.hardware["chip_id"] == self.report()[0x1A0:0x1E0].hex()

    @pytest.mark.parametrize(
        ("product", "version"), [("milan", 2), ("milan", 3), ("genoa", 3), ("genoa", 2), ("turin", 5)]
    )
    def test_the_simulated_vendor_can_be_asked_and_verifies_with_its_list(
        self, services: VendorServices, product: str, version: int
    ) -> None:
        shown = simulated_snp.Shown(product=product, version=version)
        report, parts = shown.quote(), shown.endorsed()
        tcb = report[0x180:0x188]
        fmc = f"fmcSPL={tcb[0]:02d}&" if product == "turin" else ""
        order = (1, 2, 3, 7) if product == "turin" else (0, 1, 6, 7)
        names = ("blSPL", "teeSPL", "snpSPL", "ucodeSPL")
        query = fmc + "&".join(f"{name}={tcb[at]:02d}" for name, at in zip(names, order, strict=True))
        services.serve_amd(
            product.capitalize(),
            chip=report[0x1A0 : 0x1A0 + (8 if product == "turin" else 64)].hex(),
            query=query,
            vcek=parts.signing_key,
            chain=pem_of((parts.intermediate, parts.root)).encode().replace(b"\n", b"\r\n"),
            crl=parts.crl,
        )
        with fetcher(services, now=NOW) as fetch:
            document = fetch.endorsements("snp", report)
        claims = snp.verify(
            report,
            document,
            roots=[simulated_root(simulated_snp.platform(product).root_sha256)],
            now=NOW,
            revocation_required=True,
        )
        assert claims.simulated
        assert document_ends("snp", document) == claims.collateral_expires

    def test_a_report_without_a_product_is_asked_for_under_each_and_no_more(
        self, services: VendorServices
    ) -> None:
        with fetcher(services) as fetch, pytest.raises(EndorsementError, match="Milan, Genoa were asked"):
            fetch.endorsements("snp", self.report())
        assert [path.split("/")[3] for _, path in services.requests] == ["Milan", "Genoa"]

    def test_a_vlek_cannot_be_fetched_and_that_is_said(self, services: VendorServices) -> None:
        report = vectors("coco-trustee/snp/test-vlek-report.bin").read_bytes()
        with (
            fetcher(services) as fetch,
            pytest.raises(EndorsementError, match=r"VLEK.*let the workload carry"),
        ):
            fetch.endorsements("snp", report)
        assert services.asked() == 0

    def test_a_hidden_chip_id_is_not_asked_for(self, services: VendorServices) -> None:
        report = self.report()
        hidden = report[:0x1A0] + bytes(64) + report[0x1E0:]
        with fetcher(services) as fetch, pytest.raises(EndorsementError, match="hides its chip's id"):
            fetch.endorsements("snp", hidden)

    def test_turin_is_asked_for_with_eight_bytes_and_the_fmc_level(self, services: VendorServices) -> None:
        report = bytearray(self.report())
        report[0x180:0x188] = bytes([1, 2, 3, 4, 0, 0, 0, 9])
        for start in (0x38, 0x1E0, 0x1F0):  # current, committed and launch TCB in Turin's layout
            report[start : start + 8] = bytes([1, 2, 3, 4, 0, 0, 0, 9])
        report[0x1A0:0x1E0] = bytes.fromhex("1e550a8ee5cf9f4d") + bytes(56)
        assert parse_report(bytes(report)).reported_tcb.fmc == 1
        with fetcher(services) as fetch, pytest.raises(EndorsementError, match="AMD knows no Turin chip"):
            fetch.endorsements("snp", bytes(report))
        expected = "/vcek/v1/Turin/1e550a8ee5cf9f4d?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=09"
        assert [path for _, path in services.requests] == [expected]

    @pytest.mark.parametrize(
        ("path", "body", "message"),
        [
            ("/vcek/v1/Milan/cert_chain", b"-----BEGIN", "not PEM"),
            ("/vcek/v1/Milan/cert_chain", b"", "not PEM"),
            ("/vcek/v1/Milan/crl", b"0\x03\x02\x01\x01", "revocation list"),
            ("/vcek/v1/Milan/crl", b"<html></html>", "revocation list"),
            ("/vcek/v1/Milan/d495", b"\x30\x00", "certificate"),
        ],
    )
    def test_wrong_content_is_refused(
        self, services: VendorServices, path: str, body: bytes, message: str
    ) -> None:
        self.serve(services, self.report(), now=SUMMER)
        services.fail(path, Changed(lambda due: replace(due, body=body)))
        with fetcher(services) as fetch, pytest.raises(EndorsementError, match=message):
            fetch.endorsements("snp", self.report())

    def test_the_certificate_of_another_chip_is_refused_and_not_kept(
        self, services: VendorServices, tmp_path: Path
    ) -> None:
        self.serve(services, self.report(), now=SUMMER)
        other = vectors("coco-trustee/snp/test-vcek.der").read_bytes()
        services.fail("/vcek/v1/Milan/d495", Changed(lambda due: replace(due, body=other)))
        cache = Cache(tmp_path / "cache")
        with fetcher(services, cache=cache) as fetch:
            with pytest.raises(EndorsementError, match="certificate of another chip"):
                fetch.endorsements("snp", self.report())
            assert not cache.entries()

    def test_a_chip_is_asked_for_once_a_quarter_and_its_list_daily(
        self, services: VendorServices, tmp_path: Path
    ) -> None:
        self.serve(services, self.report(), now=SUMMER)
        for days in (0, 0.5, 2, 2.5):
            with fetcher(services, now=SUMMER + days * DAY, cache=Cache(tmp_path / "cache")) as fetch:
                fetch.endorsements("snp", self.report())
        assert services.asked("/vcek/v1/Milan/d495") == 1
        assert services.asked("/vcek/v1/Milan/crl") == 2


class TestNvidia:
    RIMS = ("nvidia-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml",
            "nvidia-nvtrust/1010_0200_882_96005E0001_PROD.swidtag")  # fmt: skip

    def evidence(self) -> bytes:
        captured = vectors("nvidia-attestation-sdk/hopper_evidence.json").read_bytes()
        return encode_device_evidence(parse_sdk_evidence(captured))

    def serve(self, services: VendorServices, *, life: int | None = 2 * DAY) -> list[bytes]:
        devices = parse_device_evidence(self.evidence())
        rims = [vectors(name).read_bytes() for name in self.RIMS]
        for name, rim in zip(rim_ids(devices.devices[0]), rims, strict=True):
            services.serve_rim(name, rim)
        services.serve_ocsp(ocsp_targets(devices, rims), now=SUMMER, life=life)
        return rims

    def test_manifests_and_ocsp_answers_become_one_document(
        self, services: VendorServices, tmp_path: Path
    ) -> None:
        rims = self.serve(services)
        cache = Cache(tmp_path / "cache")
        with fetcher(services, now=at("2025-06-01"), cache=cache) as fetch:
            found = parse_nvidia_endorsements(fetch.device_endorsements(self.evidence()))
        assert list(found.rims) == rims
        devices = parse_device_evidence(self.evidence())
        assert len(found.ocsp) == len(ocsp_targets(devices, rims)) == services.asked() - 2
        assert {entry.key.split("/")[0] for entry in cache.entries()} == {"rim", "ocsp"}

    @pytest.mark.parametrize("switches", [0, 2])
    def test_the_simulated_vendor_can_be_asked_and_verifies_with_revocation(
        self, services: VendorServices, switches: int
    ) -> None:
        machine = simulated_nvidia.machine(count=2, switches=switches)
        shown = simulated_nvidia.show(of=machine)
        for device in parse_device_evidence(shown.evidence).devices:
            for name in rim_ids(device):
                version = name.rsplit("_", 1)[1].encode()
                fitting = (rim for rim in machine.rims if version in rim.replace(b".", b"") or version in rim)
                services.serve_rim(name, next(fitting))
        services.serve_ocsp_answers(machine.ocsp(simulated_nvidia.TODAY))
        with fetcher(services, now=NOW) as fetch:
            document = fetch.device_endorsements(shown.evidence)
        claims = nvidia.verify(
            shown.evidence,
            document,
            nonce=simulated_nvidia.NONCE,
            device_root=simulated_root(machine.device_root_sha256),
            rim_root=simulated_root(machine.rim_root_sha256),
            now=NOW,
            rules=nvidia.NvidiaRules(),
        )
        assert [one.revocation for one in claims] == ["checked"] * (2 + switches)
        assert device_document_ends(document) == min(one.expires for one in claims)

    def test_without_a_responder_no_answer_is_asked_for(self, services: VendorServices) -> None:
        self.serve(services)
        with fetcher(services, services=services.addresses(nvidia_ocsp=None)) as fetch:
            found = parse_nvidia_endorsements(fetch.device_endorsements(self.evidence()))
        assert found.ocsp == ()
        assert {method for method, _ in services.requests} == {"GET"}

    def test_an_answer_without_next_update_is_never_cached(
        self, services: VendorServices, tmp_path: Path
    ) -> None:
        self.serve(services, life=None)
        cache = Cache(tmp_path / "cache")
        with fetcher(services, now=at("2025-06-01"), cache=cache) as fetch:
            assert parse_nvidia_endorsements(fetch.device_endorsements(self.evidence())).ocsp
        # It was issued "later" than this clock, so nothing else could keep it out.
        assert all(entry.key.startswith(("rim/", "ocsp/")) for entry in cache.entries())
        later = Cache(tmp_path / "later")
        with fetcher(services, now=SUMMER, cache=later) as fetch:
            fetch.device_endorsements(self.evidence())
        assert not [entry for entry in later.entries() if entry.key.startswith("ocsp/")]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"id": "NV_GPU_DRIVER_GH100_1"}, "sent another RIM"),
            ({"rim": "%%"}, "not base64"),
            ({"rim": ""}, "0 bytes long"),
            ({"rim": "PGh0bWw+PC9odG1sPg=="}, "RIM|manifest"),
        ],
    )
    def test_another_manifest_is_refused(
        self, services: VendorServices, changes: dict[str, str], message: str
    ) -> None:
        rims = self.serve(services)
        name = rim_ids(parse_device_evidence(self.evidence()).devices[0])[0]
        services.serve_rim(name, rims[0], **changes)
        with fetcher(services) as fetch, pytest.raises(EndorsementError, match=message):
            fetch.device_endorsements(self.evidence())

    def test_an_unknown_manifest_is_named(self, services: VendorServices) -> None:
        with (
            fetcher(services) as fetch,
            pytest.raises(EndorsementError, match="NVIDIA publishes no RIM NV_GPU_"),
        ):
            fetch.device_endorsements(self.evidence())

    def test_a_responder_that_refuses_is_named(self, services: VendorServices) -> None:
        self.serve(services)
        services.serve_ocsp((), now=SUMMER)
        with fetcher(services) as fetch, pytest.raises(EndorsementError, match="refused: unauthorized"):
            fetch.device_endorsements(self.evidence())


class TestCached:
    def test_nothing_is_asked_twice_while_it_is_fresh(self, services: VendorServices, tmp_path: Path) -> None:
        serve_tdx(services)
        for later in (0, 3600, DAY - 1):
            with fetcher(services, now=SUMMER + later, cache=Cache(tmp_path / "cache")) as fetch:
                first = fetch.endorsements("tdx", tdx_quote())
        assert services.asked() == 4
        intel.verify(tdx_quote(), first, root=INTEL_ROOT, now=SUMMER, rules=SERVER)

    def test_refresh_asks_again(self, services: VendorServices, tmp_path: Path) -> None:
        serve_tdx(services)
        for refresh in (False, True):
            with fetcher(services, cache=Cache(tmp_path / "cache"), refresh=refresh) as fetch:
                fetch.endorsements("tdx", tdx_quote())
        assert services.asked() == 8

    def test_while_the_service_is_down_what_is_valid_serves(
        self, services: VendorServices, tmp_path: Path
    ) -> None:
        serve_tdx(services)
        with fetcher(services, cache=Cache(tmp_path / "cache")) as fetch:
            fetch.endorsements("tdx", tdx_quote())
        services.fail("/", *[status(503)] * 99)
        with fetcher(services, now=SUMMER + 5 * DAY, cache=Cache(tmp_path / "cache")) as fetch:
            document = fetch.endorsements("tdx", tdx_quote())
        intel.verify(tdx_quote(), document, root=INTEL_ROOT, now=SUMMER + 5 * DAY, rules=SERVER)
        ended = fetcher(services, now=at("2025-07-20"), cache=Cache(tmp_path / "cache"))
        with ended as fetch, pytest.raises(NetworkError, match="status 503"):
            fetch.endorsements("tdx", tdx_quote())

    def test_after_its_end_an_entry_is_replaced(self, services: VendorServices, tmp_path: Path) -> None:
        serve_tdx(services)
        cache = Cache(tmp_path / "cache")
        key = f"tcb/tdx/{TDX}"
        with fetcher(services, cache=cache) as fetch:
            fetch.endorsements("tdx", tdx_quote())
        entry = cache.read("intel", key)
        assert entry is not None
        end = part_ends("intel", key, entry.content)
        asked = services.asked(TCB)
        cache.write(Entry("intel", key, end - 100, entry.content))
        with fetcher(services, now=end - 50, cache=cache) as fetch:
            fetch.endorsements("tdx", tdx_quote())
        assert services.asked(TCB) == asked + 1  # within an hour of its end

    def test_a_clock_that_went_back_makes_ages_unknown_so_it_is_asked_again(
        self, services: VendorServices, tmp_path: Path
    ) -> None:
        serve_tdx(services)
        for now in (SUMMER, SUMMER - 2 * DAY):
            with fetcher(services, now=now, cache=Cache(tmp_path / "cache")) as fetch:
                fetch.endorsements("tdx", tdx_quote())
        assert services.asked() == 8

    def test_a_poisoned_entry_is_asked_for_again(self, services: VendorServices, tmp_path: Path) -> None:
        serve_tdx(services)
        cache = Cache(tmp_path / "cache")
        cache.write(Entry("intel", f"tcb/tdx/{TDX}", SUMMER, b"{}"))
        with fetcher(services, cache=cache) as fetch:
            document = fetch.endorsements("tdx", tdx_quote())
        intel.verify(tdx_quote(), document, root=INTEL_ROOT, now=SUMMER, rules=SERVER)

    def test_a_full_disk_is_no_reason_to_do_without_what_was_fetched(
        self, services: VendorServices, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Full(Cache):
            def write(self, entry: Entry) -> None:
                raise UsageError("the cache cannot be used: No space left on device")

        serve_tdx(services)
        with fetcher(services, cache=Full(tmp_path / "cache")) as fetch:
            document = fetch.endorsements("tdx", tdx_quote())
        intel.verify(tdx_quote(), document, root=INTEL_ROOT, now=SUMMER, rules=SERVER)
        assert "No space left" in caplog.text

    def test_a_cache_that_is_none_is_said_at_once(self, services: VendorServices, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        fetch = fetcher(services, cache=Cache(tmp_path / "file" / "cache"))
        with fetch, pytest.raises(UsageError, match="cannot be used"):
            fetch.endorsements("tdx", tdx_quote())

    def test_offline_answers_from_the_cache_alone(self, services: VendorServices, tmp_path: Path) -> None:
        serve_tdx(services)
        cache = Cache(tmp_path / "cache")
        with fetcher(services, cache=cache) as fetch:
            online = fetch.endorsements("tdx", tdx_quote())
        asked = services.asked()
        with fetcher(services, now=SUMMER + 10 * DAY, cache=cache, offline=True) as fetch:
            assert fetch.endorsements("tdx", tdx_quote()) == online
        assert services.asked() == asked

    def test_offline_names_what_is_missing_and_how_to_bring_it(self, tmp_path: Path) -> None:
        with Fetcher(cache=Cache(tmp_path / "cache"), offline=True) as fetch:
            with pytest.raises(EndorsementError, match=f"lacks TDX TCB info of FMSPC {TDX}") as caught:
                fetch.endorsements("tdx", tdx_quote())
            assert "cloister endorsements export" in str(caught.value)
            with pytest.raises(EndorsementError, match="lacks VCEK of Milan chip"):
                fetch.endorsements("snp", TestAmd().report())

    def test_offline_says_what_ended(self, services: VendorServices, tmp_path: Path) -> None:
        serve_tdx(services)
        cache = Cache(tmp_path / "cache")
        with fetcher(services, cache=cache) as fetch:
            fetch.endorsements("tdx", tdx_quote())
        late = fetcher(services, now=at("2025-08-01"), cache=cache, offline=True)
        with late as fetch, pytest.raises(EndorsementError, match="ended on 2025-07-19"):
            fetch.endorsements("tdx", tdx_quote())

    def test_a_carried_bundle_serves_a_site_without_a_network(
        self, services: VendorServices, tmp_path: Path
    ) -> None:
        serve_tdx(services)
        with fetcher(services) as fetch:
            carried = encode_bundle(fetch.collect("tdx", tdx_quote()).entries, created_at=SUMMER)
        site = Cache(tmp_path / "site")
        for entry in parse_bundle(carried):
            site.write(entry)
        with Fetcher(cache=site, offline=True, clock=lambda: SUMMER + 3 * DAY) as fetch:
            document = fetch.endorsements("tdx", tdx_quote())
        claims = intel.verify(tdx_quote(), document, root=INTEL_ROOT, now=SUMMER + 3 * DAY, rules=SERVER)
        assert claims.tcb_status == "UpToDate"

    def test_another_root_still_refuses_what_was_fetched(self, services: VendorServices) -> None:
        serve_tdx(services)
        with fetcher(services) as fetch:
            document = fetch.endorsements("tdx", tdx_quote())
        other = Root(name="another", sha256="00" * 32, simulated=False)
        with pytest.raises(CloisterError, match="the chain ends in root"):
            intel.verify(tdx_quote(), document, root=other, now=SUMMER, rules=SERVER)

    def test_progress_counts_every_part(self, services: VendorServices) -> None:
        serve_tdx(services)
        seen: list[tuple[int, int, str]] = []
        with fetcher(services, progress=lambda *step: seen.append(step)) as fetch:
            fetch.endorsements("tdx", tdx_quote())
        assert [(done, needed) for done, needed, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def test_a_tpm_has_no_vendor_to_ask(self, services: VendorServices) -> None:
        with fetcher(services) as fetch, pytest.raises(EndorsementError, match="nobody publishes"):
            fetch.endorsements("tpm", b"")
