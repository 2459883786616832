"""The pure half of fetching: waits, addresses, cutting signed text, ends, bundles for air-gapped sites."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.encoding import encode_json
from cloister.endorsements.airgap import MAX_BUNDLE, encode_bundle, parse_bundle
from cloister.endorsements.amd import SnpEndorsements, encode_snp_endorsements, parse_cert_chain
from cloister.endorsements.amd_kds import product_parts
from cloister.endorsements.asking import VENDORS, Entry, Part, Reply, check_key, seconds_of
from cloister.endorsements.backoff import LONGEST_WAIT, MAX_RETRY_AFTER, retry_after, wait_before
from cloister.endorsements.intel_pcs import ask_intel, assemble, intel_document_ends, raw_members
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.endorsements.nvidia_services import ask_nvidia, ocsp_part, rim_part
from cloister.endorsements.plans import ask, device_document_ends, document_ends, part_ends, subject
from cloister.endorsements.services import Services
from cloister.errors import CloisterError, EndorsementError
from intel_vectors import at, collateral, quote
from shared_data import vectors
from simulated_evidence import NOW, platform
from spec_vectors import spec_vectors
from vendor_services import VendorServices

PARTS = {"intel": ("tcb/tdx/x", "qe/tdx", "pckcrl/platform", "rootcrl", "other"),
         "amd": ("vcek/milan/x/1", "chain/milan", "crl/milan", "other"),
         "nvidia": ("rim/X", "ocsp/x", "other")}  # fmt: skip


class TestBackoff:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            ("0", 0.0),
            ("120", 120.0),
            (" 7 ", 7.0),
            ("999999999", MAX_RETRY_AFTER),
            ("-1", None),
            ("1.5", None),
            ("1e3", None),
            ("٣", None),
            ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
            ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
            ("tomorrow", None),
            ("x" * 65, None),
        ],
    )
    def test_retry_after(self, value: str | None, expected: float | None) -> None:
        assert retry_after(value, now=10) == expected

    @given(st.text(max_size=70), st.floats(0, 1e12))
    def test_any_header_is_a_bounded_wait_or_none(self, value: str, now: float) -> None:
        found = retry_after(value, now=now)
        assert found is None or 0 <= found <= MAX_RETRY_AFTER

    @given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
    def test_waits_are_bounded(self, attempt: int, jitter: float) -> None:
        assert 0.25 <= wait_before(attempt, asked=None, jitter=jitter) <= LONGEST_WAIT


class TestSignedText:
    @pytest.mark.parametrize(
        "name", ["google-go-tdx-guest/sample_tcbInfo_response", "coco-trustee/tcbInfo.json"]
    )
    def test_a_captured_reply_is_cut_and_not_written_again(self, name: str) -> None:
        text = vectors(name).read_text()
        members = raw_members(text, what="a reply")
        assert set(members) == {"tcbInfo", "signature"}
        assert f'"tcbInfo":{members["tcbInfo"]}' in text

    @given(
        st.dictionaries(st.text(max_size=8), st.recursive(
            st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=8,
        ), max_size=4),
        st.sampled_from([None, 1, "\t"]),
    )  # fmt: skip
    def test_any_object_is_cut_into_its_own_text(self, value: dict[str, Any], indent: Any) -> None:
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        try:
            members = raw_members(text, what="a reply")
        except EndorsementError:
            with pytest.raises(UnicodeEncodeError):
                text.encode()
            return
        assert {name: json.loads(raw) for name, raw in members.items()} == value
        assert all(raw in text for raw in members.values())

    @given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
    def test_anything_else_is_refused_by_name(self, text: str) -> None:
        try:
            raw_members(text, what="a reply")
        except EndorsementError:
            return
        assert text.strip().startswith("{")

    @pytest.mark.parametrize(
        "text", ["[]", "1", '"x"', "", " ", "{", '{"a":1', '{"a":1,}', '{"a":1}{}', "{" * 99]
    )
    def test_what_is_no_object_is_refused(self, text: str) -> None:
        with pytest.raises(EndorsementError):
            raw_members(text, what="a reply")


class TestQuestions:
    def test_a_quote_leads_to_four_addresses(self) -> None:
        asking = ask_intel(quote("phala-dcap-qvl/tdx_quote"), Services())
        base = "https://api.trustedservices.intel.com"
        assert [part.url for part in next(asking)] == [
            f"{base}/tdx/certification/v4/tcb?fmspc=b0c06f000000",
            f"{base}/tdx/certification/v4/qe/identity",
            f"{base}/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
            "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
        ]

    def test_a_pccs_is_asked_for_the_roots_list_as_well(self) -> None:
        parts = next(
            ask_intel(quote("phala-dcap-qvl/sgx_quote"), Services(intel="https://pccs.example:8081"))
        )
        assert parts[3].url == "https://pccs.example:8081/sgx/certification/v4/rootcacrl"
        assert parts[0].url.startswith("https://pccs.example:8081/sgx/certification/v4/tcb?")

    def test_names_do_not_depend_on_the_mirror(self) -> None:
        found = [
            [part.key for part in next(ask_intel(quote("phala-dcap-qvl/tdx_quote"), services))]
            for services in (Services(), Services(intel="https://pccs.example"))
        ]
        assert found[0] == found[1]
        assert all(check_key(key) for key in found[0])

    @pytest.mark.parametrize("rim", ["../../etc", "A/B", "A?b", "A b", "", "a", "X" * 128, "Ä", "A%2e"])
    def test_an_id_out_of_evidence_that_could_lead_elsewhere_is_refused(self, rim: str) -> None:
        with pytest.raises(EndorsementError, match="not of NVIDIA's form"):
            rim_part(rim, Services())

    def test_the_number_of_questions_is_bounded(self) -> None:
        ids = tuple(f"NV_{number}" for number in range(33))
        with pytest.raises(EndorsementError, match="33 RIMs"):
            next(ask_nvidia(ids, lambda _: (), Services()))
        der = vectors("phala-dcap-qvl/TrustedRootCA.der").read_bytes()
        asking = ask_nvidia((), lambda _: tuple((der + bytes(n), der) for n in range(65)), Services())
        next(asking)
        with pytest.raises(EndorsementError, match="65 certificates"):
            asking.send(())

    def test_a_certificate_that_is_none_is_not_asked_for(self) -> None:
        with pytest.raises(EndorsementError, match="cannot be read"):
            ocsp_part(b"\x30\x00", b"\x30\x00", Services())

    @given(st.sampled_from(["tdx", "sgx", "snp", "az-snp-vtpm", "tpm"]), st.binary(max_size=1300))
    def test_evidence_of_any_bytes_leads_to_our_own_errors_alone(self, tee: Any, evidence: bytes) -> None:
        for use in (lambda: next(ask(tee, evidence, Services())), lambda: subject(tee, evidence)):
            with pytest.raises(CloisterError):
                use()


def every_part() -> list[Part]:
    """One part of each kind."""
    report = bytes.fromhex(vectors("virtee-sev/report_milan.hex").read_text().strip())
    asking = ask("snp", report, Services())
    (vcek,) = next(asking)
    der = vectors("phala-dcap-qvl/TrustedRootCA.der").read_bytes()
    return [
        *next(ask_intel(quote("phala-dcap-qvl/tdx_quote"), Services())),
        vcek,
        *product_parts("milan", Services()),
        rim_part("NV_GPU_DRIVER_GH100_1", Services()),
        ocsp_part(der, der, Services()),
    ]


class TestReplies:
    @pytest.mark.parametrize("number", range(9))
    @given(
        body=st.binary(max_size=600)
        | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")),
        chain=st.text(max_size=60),
    )
    def test_a_reply_of_any_bytes_has_our_own_errors_alone(
        self, number: int, body: bytes, chain: str
    ) -> None:
        part = every_part()[number]
        headers = dict.fromkeys(("tcb-info-issuer-chain", "sgx-pck-crl-issuer-chain"), chain)
        with pytest.raises(CloisterError):
            part.read(Reply(body, headers))

    def test_every_part_has_a_name_that_is_one(self) -> None:
        assert [check_key(part.key) for part in every_part()] == [part.key for part in every_part()]


class TestEnds:
    def test_collateral_ends_with_its_first_part(self) -> None:
        found = intel_document_ends(collateral("tdx_quote_collateral"))
        assert at("2025-07-18") < found < at("2025-07-20")

    @pytest.mark.parametrize("tee", ["tdx", "sgx", "snp", "az-snp-vtpm"])
    @given(document=st.binary(max_size=400))
    def test_a_document_of_any_bytes_has_our_own_errors_alone(self, tee: Any, document: bytes) -> None:
        with pytest.raises(CloisterError):
            document_ends(tee, document)

    def test_an_snp_document_ends_with_its_list_if_that_is_first(self) -> None:
        ask_der, ark_der = _milan()
        vcek = vectors("virtee-sev/vcek_milan.der").read_bytes()
        plain = SnpEndorsements(signing_key=vcek, intermediate=ask_der, root=ark_der)
        assert document_ends("snp", encode_snp_endorsements(plain)) == 1_901_474_623  # the VCEK's notAfter

    def test_empty_device_endorsements_have_no_end(self) -> None:
        with pytest.raises(EndorsementError, match="empty"):
            device_document_ends(encode_nvidia_endorsements(NvidiaEndorsements()))

    def test_a_tpm_has_none(self) -> None:
        with pytest.raises(EndorsementError, match="nobody publishes"):
            document_ends("tpm", b"{}")

    @pytest.mark.parametrize("vendor", VENDORS)
    @given(content=st.binary(max_size=400))
    def test_a_part_of_any_bytes_has_our_own_errors_alone(self, vendor: Any, content: bytes) -> None:
        for key in PARTS[vendor]:
            with pytest.raises(CloisterError):
                part_ends(vendor, key, content)

    @pytest.mark.parametrize(
        "text", ["", "2025-07-01", "2025-07-01T00:00:00", "2025-07-01T00:00:00+00:00", 7, None, "Z"]
    )
    def test_a_time_that_is_not_in_utc_is_refused(self, text: object) -> None:
        with pytest.raises(EndorsementError, match="not a time in UTC"):
            seconds_of(text, what="nextUpdate")

    def test_parts_that_are_none_do_not_become_collateral(self) -> None:
        with pytest.raises(EndorsementError):
            assemble(b"{}", b"{}", b"{}", b"")


class TestBundle:
    def entries(self) -> list[Entry]:
        """What the simulated vendor's four replies become."""
        services = VendorServices()
        services.serve_intel(
            platform().collateral(NOW, "tdx"), tee="tdx", fmspc="c1015e000000", ca="platform"
        )
        evidence = platform().tee("tdx", clock=lambda: NOW).quote(bytes(64))
        parts: tuple[Part, ...] = next(ask_intel(evidence.quote, Services(intel="https://pccs.example")))
        found = []
        for part in parts:
            answer = services.routes[part.url.removeprefix("https://pccs.example")](b"")
            headers = {name.lower(): value for name, value in answer.headers.items()}
            found.append(Entry(part.vendor, part.key, NOW, part.read(Reply(answer.body, headers))))
        services._server.server_close()
        return found

    def test_it_comes_back_as_it_was(self) -> None:
        entries = self.entries()
        data = encode_bundle(entries, created_at=NOW)
        assert sorted(parse_bundle(data), key=lambda one: one.key) == sorted(entries, key=lambda one: one.key)
        assert encode_bundle(reversed(parse_bundle(data)), created_at=NOW) == data

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            pytest.param(
                {"format": "cloister/endorsements-bundle/v2"}, "form it should", id="another version"
            ),
            pytest.param({"entries": []}, "0 entries", id="empty"),
            pytest.param({"more": 1}, "form it should", id="unknown field"),
            pytest.param({"entries": "twice"}, "twice", id="an entry twice"),
            pytest.param({"key": "../../x"}, "malformed", id="a path"),
            pytest.param({"key": "qe/tdx/../x"}, "malformed", id="a path inside"),
            pytest.param({"key": "nothing"}, "no such endorsement", id="an unknown part"),
            pytest.param({"vendor": "nobody"}, "form it should", id="an unknown vendor"),
            pytest.param({"vendor": "amd"}, "no such endorsement", id="another vendor"),
            pytest.param({"fetched_at": -1}, "out of its bounds", id="before time"),
            pytest.param({"content": "e30="}, "form it should", id="another content"),
            pytest.param({"content": "%"}, "form it should", id="no base64"),
        ],
    )
    def test_what_is_not_exactly_one_is_refused_whole(self, changes: dict[str, Any], message: str) -> None:
        document = json.loads(encode_bundle(self.entries(), created_at=NOW))
        first = document["entries"][1]
        for name, value in changes.items():
            if value == "twice":
                document["entries"].append(first)
            elif name in first:
                first[name] = value
            else:
                document[name] = value
        with pytest.raises(EndorsementError, match=message):
            parse_bundle(json.dumps(document).encode())

    def test_any_prefix_is_refused(self) -> None:
        data = encode_bundle(self.entries(), created_at=NOW)
        for size in range(0, len(data), 97):
            with pytest.raises(EndorsementError):
                parse_bundle(data[:size])

    def test_nothing_is_not_exported(self) -> None:
        with pytest.raises(EndorsementError, match="name the evidence"):
            encode_bundle([], created_at=NOW)

    def test_what_is_over_its_bound_is_refused_at_once(self) -> None:
        with pytest.raises(EndorsementError, match="over its bound"):
            parse_bundle(b" " * (MAX_BUNDLE + 1))

    @given(st.binary(max_size=500))
    def test_any_bytes_have_our_own_errors_alone(self, data: bytes) -> None:
        with pytest.raises(EndorsementError):
            parse_bundle(data)

    def test_the_vector_of_the_specification_reads(self) -> None:
        vector = spec_vectors("endorsements.md")
        (entry,) = parse_bundle(json.dumps(vector).encode())
        assert (entry.vendor, entry.key) == ("intel", "rootcrl")
        assert entry.content == vectors("google-go-tdx-guest/rootcrl.der").read_bytes()
        assert encode_bundle([entry], created_at=vector["created_at"]) == encode_json(vector)


def _milan() -> tuple[bytes, bytes]:
    return parse_cert_chain(vectors("virtee-sev/cert_chain_milan").read_bytes())
