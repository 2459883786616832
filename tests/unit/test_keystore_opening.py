"""The configuration of key stores: strict, with owner-only credentials, and no library before it is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.broker.keystores import opening
from cloister.broker.keystores.opening import open_keystores
from cloister.broker.keystores.versions import bound_aad
from cloister.encoding import convert
from cloister.errors import KeystoreError, UsageError
from keystore_contract import AAD, NOW, OWNER, SECRET
from keystore_servers import AwsFront, GcpServer, VaultServer

CANARY = "canary-of-a-secret"


def private(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o600)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    private(tmp_path / "token", f"{CANARY}\n")
    private(tmp_path / "credentials", json.dumps({"access_key_id": "AKIA", "secret_access_key": CANARY}))
    return tmp_path


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    with VaultServer(tmp_path_factory.mktemp("vault")) as running:
        yield running


@pytest.fixture(scope="module")
def gcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcpServer]:
    with GcpServer(tmp_path_factory.mktemp("gcp")) as running:
        yield running


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsFront]:
    with AwsFront(tmp_path_factory.mktemp("aws")) as running:
        yield running


def test_nothing_configured_is_no_store() -> None:
    assert open_keystores("") == {}


def test_every_store_of_a_file_opens_by_its_name_and_works(
    tmp_path: Path, vault: VaultServer, gcp: GcpServer, aws: AwsFront
) -> None:
    token = private(tmp_path / "token", vault.token + "\n")
    account = private(tmp_path / "account", gcp.service_account())
    credentials = private(
        tmp_path / "credentials", json.dumps({"access_key_id": "AKIA", "secret_access_key": "secret"})
    )
    stores = open_keystores(
        f"""
        [acme-vault]
        kind = "vault"
        address = "{vault.base}"
        token_file = "{token}"
        ca_file = "{vault.ca_file}"

        [acme-aws]
        kind = "aws"
        region = "eu-central-1"
        credentials_file = "{credentials}"
        endpoint = "{aws.base}"

        [acme-gcp]
        kind = "gcp"
        ring = "{gcp.ring}"
        service_account_file = "{account}"
        hardware = false
        address = "{gcp.base}"
        ca_file = "{gcp.ca_file}"
        """
    )
    assert list(stores) == ["acme-vault", "acme-aws", "acme-gcp"]
    for store in stores.values():
        store.generate("opened", owner=OWNER, now=NOW)
        assert store.unwrap("opened", store.wrap("opened", SECRET, AAD), AAD) == SECRET


def test_a_vault_of_azure_opens_without_asking_it(folder: Path) -> None:
    text = f"""
        [acme-azure]
        kind = "azure"
        address = "https://acme.vault.azure.net"
        tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
        client = "11111111-2222-3333-4444-555555555555"
        secret_file = "{folder / "token"}"
        hardware = true
        purge = false
    """
    assert repr(open_keystores(text)["acme-azure"]) == "AzureKeystore()"


VAULT = 'kind = "vault"\naddress = "https://vault.example"\ntoken_file = "{folder}/token"\n'
AWS = 'kind = "aws"\nregion = "eu-central-1"\ncredentials_file = "{folder}/credentials"\n'
AZURE = (
    'kind = "azure"\naddress = "https://a.vault.azure.net"\ntenant = "t"\nclient = "c"\n'
    'secret_file = "{folder}/token"\n'
)
GCP = 'kind = "gcp"\nring = "projects/a/locations/b/keyRings/c"\nservice_account_file = "{folder}/token"\n'

REFUSED = {
    "not TOML": "[a\n",
    "not a table": 'a = "vault"\n',
    "a list of tables": "[[a]]\n" + VAULT,
    "a name twice": f"[a]\n{VAULT}[a]\n{VAULT}",
    "the built-in name": f"[local]\n{VAULT}",
    "a name that is a path": f'["../a"]\n{VAULT}',
    "an empty name": f'[""]\n{VAULT}',
    "no kind": '[a]\naddress = "x"\n',
    "an unknown kind": '[a]\nkind = "memory"\n',
    "a kind that is a module": '[a]\nkind = "os"\n',
    "a kind that is a number": "[a]\nkind = 1\n",
    "an unknown field": f"[a]\n{VAULT}verify = false\n",
    "a field in a table": f"[a]\n{VAULT}[a.more]\nx = 1\n",
    "a token in the file": f'[a]\n{VAULT}token = "{CANARY}"\n',
    "a field left out": '[a]\nkind = "vault"\naddress = "https://vault.example"\n',
    "a field of another type": f"[a]\n{VAULT}namespace = 7\n",
    "an address without TLS": '[a]\nkind = "vault"\naddress = "http://vault.example"\n'
    'token_file = "{folder}/token"\n',
    "a relative path": '[a]\nkind = "vault"\naddress = "https://vault.example"\ntoken_file = "token"\n',
    "a token file that is not there": '[a]\nkind = "vault"\naddress = "https://v.example"\ntoken_file = "/no"\n',
    "a folder as token file": '[a]\nkind = "vault"\naddress = "https://v.example"\ntoken_file = "{folder}"\n',
    "a CA file that is not there": f'[a]\n{VAULT}ca_file = "/no"\n',
    "a mount with a parent folder": f'[a]\n{VAULT}transit = "../sys"\n',
    "a mount with a query": f'[a]\n{VAULT}records = "secret?x"\n',
    "a namespace that is a header": f'[a]\n{VAULT}namespace = "a\\r\\nX-Vault-Token: b"\n',
    "a region that is a host": AWS.replace("eu-central-1", "x.example/").join(["[a]\n", ""]),
    "credentials that are none": AWS.replace("/credentials", "/token").join(["[a]\n", ""]),
    "azure without purge decided": f"[a]\n{AZURE}hardware = true\n",
    "azure elsewhere without TLS": f'[a]\n{AZURE}hardware = true\npurge = true\nauthority = "http://x.example"\n',
    "gcp without hardware decided": f"[a]\n{GCP}",
    "gcp with another's account": f"[a]\n{GCP}hardware = true\n",
    "more than there may be": "".join(f"[a{number}]\n{VAULT}" for number in range(33)),
    "a huge file": "#" * (1 << 17),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_that_cannot_be_meant_is_refused_in_one_line(folder: Path, case: str) -> None:
    with pytest.raises(UsageError) as refusal:
        open_keystores(REFUSED[case].replace("{folder}", str(folder)))
    line = str(refusal.value)
    assert line.isprintable()
    assert len(line) < 600
    assert CANARY not in line


def test_credentials_that_others_can_read_are_refused(folder: Path) -> None:
    (folder / "token").chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others"):
        open_keystores(f"[a]\n{VAULT.replace('{folder}', str(folder))}")


@pytest.mark.parametrize("content", [b"", b"x" * (1 << 15)], ids=["empty", "huge"])
def test_credentials_of_no_sensible_length_are_refused(folder: Path, content: bytes) -> None:
    private(folder / "token", content)
    with pytest.raises(UsageError, match="is empty or longer"):
        open_keystores(f"[a]\n{VAULT.replace('{folder}', str(folder))}")


LIBRARIES = {"vault": (VAULT, "hvac"), "aws": (AWS, "botocore"), "gcp": (GCP, "google")}
LIBRARIES["azure"] = (AZURE + "hardware = true\npurge = true\n", "azure")
LIBRARIES["gcp"] = (GCP + "hardware = true\n", "google")


@pytest.mark.parametrize("kind", LIBRARIES)
def test_a_missing_library_is_one_line_that_says_what_to_install(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, package = LIBRARIES[kind]
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError) as refusal:
        open_keystores(f"[a]\n{text.replace('{folder}', str(folder))}")
    assert f"pip install 'cloister[{kind}]'" in str(refusal.value)


def test_a_kind_that_is_not_named_costs_no_import(folder: Path) -> None:
    program = (
        "import sys\n"
        "from cloister.broker.keystores.opening import open_keystores\n"
        "import cloister.broker.keystores.vault, cloister.broker.keystores.aws\n"
        "import cloister.broker.keystores.azure, cloister.broker.keystores.gcp\n"
        "open_keystores('')\n"
        "heavy = {'hvac', 'botocore', 'boto3', 'azure', 'google', 'requests', 'pkcs11', 'kmip'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_one_store_that_cannot_be_opened_refuses_the_file_by_its_name(folder: Path) -> None:
    text = f"[good]\n{VAULT}[bad]\n{VAULT}x = 1\n".replace("{folder}", str(folder))
    with pytest.raises(UsageError, match=r"\[bad\]"):
        open_keystores(text)


def test_an_opened_store_shows_nothing_of_its_credentials(folder: Path) -> None:
    stores = open_keystores(f"[a]\n{VAULT}[b]\n{AWS}".replace("{folder}", str(folder)))
    assert CANARY not in repr(stores)


def test_a_store_that_is_not_there_is_found_when_it_is_asked(folder: Path) -> None:
    text = f"[a]\n{VAULT.replace('vault.example', '127.0.0.1:9')}".replace("{folder}", str(folder))
    with pytest.raises(KeystoreError):
        open_keystores(text)["a"].describe("any")


DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"


def test_the_file_of_the_how_to_names_every_kind_with_fields_that_there_are() -> None:
    text = (DOCUMENTS / "how-to" / "key-stores.md").read_text()
    tables = tomllib.loads(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    kinds = {
        "pkcs11": opening.Pkcs11Settings,
        "kmip": opening.KmipSettings,
        "vault": opening.VaultSettings,
        "aws": opening.AwsSettings,
        "azure": opening.AzureSettings,
        "gcp": opening.GcpSettings,
    }
    assert [table.pop("kind") for table in tables.values()] == list(kinds)
    for table, settings in zip(tables.values(), kinds.values(), strict=True):
        convert(table, settings, what="the how-to")


def test_the_bounds_are_those_of_the_specification() -> None:
    text = (DOCUMENTS / "spec" / "keystores.md").read_text()
    vectors = re.findall(r"\| `(cloister/[a-z]+-keystore/v1)` \| `([0-9a-f]{64})` \|", text)
    assert [label for label, _ in vectors] == [
        f"cloister/{name}-keystore/v1" for name in ("vault", "azure", "gcp")
    ]
    for label, bound in vectors:
        assert bound_aad(label, "models", 2, bytes(range(32))).hex() == bound
