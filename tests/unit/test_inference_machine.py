"""What this machine is to an engine, read from trees of files as kernels and containers write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.inference.machine import Machine, read_bandwidth, read_machine
from cloister.inference.machine_limits import number_list

GIB = 1 << 30
AMX = "fpu avx2 fma f16c avx512f avx512_vnni avx_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def cpuinfo(count: int, flags: str, *, model: str = "Some CPU", fields: str = "") -> str:
    return "\n\n".join(
        f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: {model}\n{fields}flags\t\t: {flags}"
        for number in range(count)
    )


def topology(siblings: list[list[int]]) -> dict[str, str]:
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": ",".join(map(str, core)) + "\n"
        for core in siblings
        for cpu in core
    }


def meminfo(total: int, available: int) -> dict[str, str]:
    return {"proc/meminfo": f"MemTotal: {total >> 10} kB\nMemAvailable: {available >> 10} kB\n"}


def laptop(root: Path) -> Path:
    """Four cores with two hardware threads each: 0 and 4, 1 and 5, …"""
    return tree(
        root,
        {
            "proc/cpuinfo": cpuinfo(8, "fpu avx2 fma f16c avx_vnni"),
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "sys/devices/system/node/online": "0\n",
            "sys/devices/system/node/node0/cpulist": "0-7\n",
            "sys/devices/system/node/node0/meminfo": f"Node 0 MemTotal: {16 * GIB >> 10} kB\n",
        }
        | topology([[n, n + 4] for n in range(4)])
        | meminfo(16 * GIB, 8 * GIB),
    )


def xeon(root: Path) -> Path:
    """Two sockets of four cores, two threads each, AMX."""
    cores = [[n, n + 8] for n in range(8)]
    nodes = {
        "sys/devices/system/node/online": "0-1\n",
        "sys/devices/system/node/node0/cpulist": "0-3,8-11\n",
        "sys/devices/system/node/node1/cpulist": "4-7,12-15\n",
    }
    memory = {
        f"sys/devices/system/node/node{n}/meminfo": f"Node {n} MemTotal: {64 * GIB >> 10} kB\n"
        for n in (0, 1)
    }
    base = {"proc/cpuinfo": cpuinfo(16, AMX, model="Intel(R) Xeon(R) Platinum 8480+")}
    return tree(root, base | topology(cores) | nodes | memory | meminfo(128 * GIB, 120 * GIB))


def test_threads_of_one_core_are_counted_once(tmp_path: Path) -> None:
    found = read_machine(laptop(tmp_path), affinity=range(8), architecture="x86_64")
    assert found.processors == len(found.cores) == 4
    assert found.features == {"avx2", "fma", "f16c", "avx_vnni"}
    assert found.huge_pages == "madvise"
    assert "4 cores (8 threads)" in found.words


def test_only_processors_of_this_process_count(tmp_path: Path) -> None:
    found = read_machine(laptop(tmp_path), affinity=(0, 4, 1), architecture="x86_64")
    assert found.cores == (frozenset({0, 4}), frozenset({1}))
    assert found.nodes[0].cpus == {0, 1, 4}


def test_a_server_of_two_sockets_shows_its_nodes_and_its_matrix_units(tmp_path: Path) -> None:
    found = read_machine(xeon(tmp_path), affinity=range(16), architecture="x86_64")
    assert [sorted(node.cpus) for node in found.nodes] == [
        [0, 1, 2, 3, 8, 9, 10, 11],
        [4, 5, 6, 7, 12, 13, 14, 15],
    ]
    assert found.nodes[0].memory == 64 * GIB
    assert found.processors == 8
    assert {"amx_int8", "amx_bf16", "avx512_bf16"} <= found.features


@pytest.mark.parametrize(
    ("files", "processors", "memory", "available"),
    [
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "250000 100000\n",
                "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {GIB}\n",
            },
            2, 4 * GIB, 2 * GIB,
            id="version 2 in a container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": f"{2 * GIB}\n",
            },
            1, 2 * GIB, 2 * GIB,
            id="version 2, limited by the group above",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": f"{6 * GIB}\n",
                "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": f"{GIB}\n",
            },
            3, 6 * GIB, 5 * GIB,
            id="version 1",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "1:cpu:/\n0::/../../elsewhere\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory.max": "what\n",
            },
            4, 16 * GIB, 8 * GIB,
            id="no limit, and files that say nothing",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 100000\n"},
            1, 16 * GIB, 8 * GIB,
            id="less than one processor",
        ),
    ],
)  # fmt: skip
def test_limits_of_control_groups_are_kept(
    tmp_path: Path, files: dict[str, str], processors: int, memory: int, available: int
) -> None:
    found = read_machine(tree(laptop(tmp_path), files), affinity=range(8), architecture="x86_64")
    assert (found.processors, found.limits.memory, found.limits.available) == (processors, memory, available)


def test_an_enclave_without_sys_takes_the_cores_that_cpuinfo_tells(tmp_path: Path) -> None:
    text = "\n\n".join(
        f"processor: {n}\nvendor_id: GenuineIntel\nphysical id: 0\ncore id: {n % 2}\nflags: avx2 fma"
        for n in range(4)
    )
    found = read_machine(tree(tmp_path, {"proc/cpuinfo": text}), affinity=range(4), architecture="x86_64")
    assert found.cores == (frozenset({0, 2}), frozenset({1, 3}))
    assert found.nodes[0].cpus == {0, 1, 2, 3}
    assert found.huge_pages == ""


def test_an_arm_machine_shows_what_engines_use_there(tmp_path: Path) -> None:
    text = (
        "processor : 0\nFeatures : fp asimd asimddp i8mm bf16 sve\nCPU implementer : 0x41\nCPU part : 0xd4f\n"
    )
    found = read_machine(tree(tmp_path, {"proc/cpuinfo": text}), affinity={0}, architecture="aarch64")
    assert found.features == {"asimd", "asimddp", "i8mm", "bf16", "sve"}
    assert (found.vendor, found.model) == ("0x41", "0xd4f")


def test_where_nothing_is_said_every_processor_is_a_core(tmp_path: Path) -> None:
    found = read_machine(tmp_path, affinity=(3, 5), architecture="x86_64")
    assert found.cores == (frozenset({3}), frozenset({5}))
    assert found.features == frozenset()
    assert found.words


def test_the_fingerprint_is_of_what_decides_speed(tmp_path: Path) -> None:
    def fingerprint(root: Path, cpus: range, **files: str) -> bytes:
        return read_machine(tree(root, files), affinity=cpus, architecture="x86_64").fingerprint

    first = fingerprint(laptop(tmp_path / "a"), range(8))
    less_free = meminfo(16 * GIB, GIB)
    assert fingerprint(laptop(tmp_path / "b"), range(8), **less_free) == first
    assert fingerprint(laptop(tmp_path / "c"), range(7)) != first
    assert fingerprint(xeon(tmp_path / "d"), range(16)) != first
    quota = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}
    assert fingerprint(laptop(tmp_path / "e"), range(8), **quota) != first
    assert len(first) == 32


def test_memory_is_read_at_a_speed_that_can_be() -> None:
    found = read_machine()
    assert isinstance(found, Machine)
    speed = read_bandwidth(found)
    assert speed is not None
    assert 1e8 < speed < 1e13


@given(st.text(max_size=60))
def test_a_list_of_processors_is_parsed_or_empty(text: str) -> None:
    assert all(0 <= number < 1 << 16 for number in number_list(text))


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_list_of_processors_is_read_as_the_kernel_writes_it(numbers: set[int]) -> None:
    assert number_list(",".join(str(number) for number in sorted(numbers)) + "\n") == numbers


@pytest.mark.parametrize("text", ["", "x", "3-1", "1-", "-2", "0-99999999", "1,,2"])
def test_a_malformed_list_of_processors_is_none(text: str) -> None:
    assert number_list(text) == set()
