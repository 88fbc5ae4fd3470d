"""The order of facts/cri-image-service.md 7.1, and which entry of an index is taken."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_shim.errors import NotFound
from cri_shim.oci import media
from cri_shim.oci.platforms import OFFERED, Platform, acceptable, normalise, runs_on, select
from rootfs.digest import Digest


def platform(text: str) -> Platform:
    system, architecture, variant = (*text.split("/"), "", "")[:3]
    return Platform(system, architecture, variant)


@dataclass(frozen=True)
class Entry:
    name: str
    platform: Platform | None
    media_type: str = media.OCI_MANIFEST
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> Digest:
        return Digest.of(self.name.encode())


def entries(*texts: str) -> list[Entry]:
    return [Entry(f"{place}:{text}", platform(text) if text else None) for place, text in enumerate(texts)]


def chosen(host: str, *texts: str) -> list[int]:
    return [int(entry.name.partition(":")[0]) for entry in select(entries(*texts), platform(host))]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("Linux/AMD64/V3", "linux/amd64/v3"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/x86_64/v1", "linux/amd64"),
        ("linux/i386", "linux/386"),
        ("linux/i386/v2", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/v8.2", "linux/arm64/v8.2"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm/8", "linux/arm/v8"),
        ("/amd64", "linux/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/s390x", "linux/s390x"),
        ("linux/ppc64le/power9", "linux/ppc64le/power9"),
    ],
)
def test_normalise(written: str, normal: str) -> None:
    assert normalise(platform(written)) == platform(normal)
    assert normalise(platform(normal)) == platform(normal)


@pytest.mark.parametrize(
    ("host", "order"),
    [
        ("linux/amd64", "amd64 386"),
        ("linux/amd64/v1", "amd64 386"),
        ("linux/amd64/v2", "amd64/v2 amd64 386"),
        ("linux/amd64/v3", "amd64/v3 amd64/v2 amd64 386"),
        ("linux/amd64/v4", "amd64/v4 amd64/v3 amd64/v2 amd64 386"),
        ("linux/amd64/v9", "amd64/v9 386"),
        ("linux/arm64", "arm64 arm/v8 arm/v7 arm/v6 arm/v5"),
        ("linux/arm64/v8.2", "arm64/v8.2 arm64/v8.1 arm64 arm/v8 arm/v7 arm/v6 arm/v5"),
        (
            "linux/arm64/v9",
            "arm64/v9 arm64/v8.5 arm64/v8.4 arm64/v8.3 arm64/v8.2 arm64/v8.1 arm64 arm/v8 arm/v7 arm/v6 arm/v5",
        ),
        (
            "linux/arm64/v9.2",
            (
                "arm64/v9.2 arm64/v9.1 arm64/v9 arm64/v8.7 arm64/v8.6 arm64/v8.5 arm64/v8.4 arm64/v8.3 arm64/v8.2 "
                "arm64/v8.1 arm64 arm/v8 arm/v7 arm/v6 arm/v5"
            ),
        ),
        ("linux/arm64/v10", "arm64/v10 arm/v8 arm/v7 arm/v6 arm/v5"),
        ("linux/arm/v8", "arm/v8 arm/v7 arm/v6 arm/v5"),
        ("linux/arm", "arm/v7 arm/v6 arm/v5"),
        ("linux/arm/v6", "arm/v6 arm/v5"),
        ("linux/arm/v5", "arm/v5"),
        ("linux/386", "386"),
        ("linux/ppc64le", "ppc64le"),
        ("linux/s390x", "s390x"),
        ("linux/riscv64", "riscv64"),
    ],
)
def test_acceptable(host: str, order: str) -> None:
    assert [str(one) for one in acceptable(platform(host))] == [f"linux/{one}" for one in order.split()]


@pytest.mark.parametrize(
    ("host", "offered", "order"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], [1]),
        ("linux/amd64", ["linux/386", "linux/amd64"], [1, 0]),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64"], [1]),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v4", "linux/amd64/v2", "linux/amd64/v3"], [3, 2, 0]),
        ("linux/amd64/v3", ["linux/amd64/v1", "linux/amd64"], [0, 1]),
        ("linux/amd64", ["linux/amd64", "linux/x86_64", "linux/amd64"], [0, 1, 2]),
        ("linux/amd64", ["", "linux/386", "", "linux/amd64"], [3, 1, 0, 2]),
        ("linux/amd64", ["", "linux/s390x"], [0]),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], [1, 0]),
        ("linux/arm64", ["linux/arm64/v9", "linux/arm64"], [1]),
        ("linux/arm/v6", ["linux/arm", "linux/arm/v5", "linux/arm/v6"], [2, 1]),
        ("linux/amd64", ["windows/amd64", "linux/amd64"], [1]),
        ("linux/amd64", ["/amd64"], [0]),
        ("linux/ppc64le", ["linux/ppc64le/power9", "linux/ppc64le"], [1]),
    ],
)
def test_select(host: str, offered: list[str], order: list[int]) -> None:
    assert chosen(host, *offered) == order


def test_attestations_are_dropped() -> None:
    image = Entry("image", Platform("linux", "amd64"))
    by_platform = Entry("a", Platform("unknown", "unknown"))
    by_note = Entry(
        "b", Platform("linux", "amd64"), annotations=(("vnd.docker.reference.type", "attestation-manifest"),)
    )
    nameless = Entry("c", None, annotations=(("vnd.docker.reference.type", "attestation-manifest"),))
    assert select([by_platform, by_note, nameless, image], image.platform) == (image,)
    with pytest.raises(NotFound, match="the index offers nothing$"):
        select([by_platform, by_note, nameless], image.platform)


def test_entries_that_are_no_images_are_dropped() -> None:
    host = Platform("linux", "amd64")
    nested = Entry("nested", host, media_type=media.OCI_INDEX)
    docker = Entry("docker", host, media_type=media.DOCKER_MANIFEST)
    other = Entry("other", host, media_type="application/vnd.example+json")
    assert select([other, nested, docker], host) == (nested, docker)


def test_the_same_digest_is_offered_once_at_its_best_place() -> None:
    host = Platform("linux", "amd64")
    twice = [Entry("x", Platform("linux", "386")), Entry("y", Platform("linux", "386")), Entry("x", host)]
    assert [entry.platform for entry in select(twice, host)] == [host, Platform("linux", "386")]
    assert len(select([Entry("x", host)] * 10_000, host)) == 1  # M26


def test_os_features_must_be_a_subset_and_the_version_does_not_count() -> None:
    host = Platform("linux", "amd64", os_version="6.1", os_features=frozenset({"sse4", "x"}))
    fits = Entry("fits", Platform("linux", "amd64", os_version="10.0", os_features=frozenset({"sse4"})))
    needs_more = Entry("more", Platform("linux", "amd64", os_features=frozenset({"sse4", "y"})))
    assert select([needs_more, fits], host) == (fits,)
    with pytest.raises(NotFound):
        select([fits], Platform("linux", "amd64"))


def test_no_match_names_what_was_wanted_and_what_was_offered() -> None:
    with pytest.raises(NotFound) as caught:
        chosen("linux/amd64/v2", "linux/arm64", "windows/amd64", "linux/arm64")
    assert str(caught.value) == (
        "there is no image for linux/amd64/v2 (or linux/amd64, linux/386): the index offers linux/arm64, windows/amd64"
    )


def test_the_list_of_offers_is_bounded_and_printable() -> None:
    with pytest.raises(NotFound) as caught:
        chosen("linux/amd64", *[f"os{n}\n\x1b/{'a' * 1000}" for n in range(OFFERED + 5)])
    message = str(caught.value)
    assert message.endswith("and 5 more")
    assert message.isprintable()
    assert len(message) < OFFERED * 100


@pytest.mark.parametrize(
    ("host", "config", "fits"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64", "linux/x86_64", True),
        ("linux/amd64", "linux/386", True),
        ("linux/amd64", "linux/arm64", False),
        ("linux/amd64", "windows/amd64", False),
        ("linux/amd64", "/", True),
        ("linux/amd64", "linux/", True),
        ("linux/amd64", "windows/", False),
        ("linux/arm/v6", "linux/arm", True),
        ("linux/arm64", "linux/arm/v7", True),
        ("linux/arm", "linux/arm64", False),
    ],
)
def test_runs_on(host: str, config: str, *, fits: bool) -> None:
    """M29: a single image for another system is refused."""
    assert runs_on(platform(host), platform(config)) is fits


names = st.sampled_from(
    ["", "linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/386", "linux/arm64", "linux/arm"]
)


@given(st.sampled_from(["linux/amd64/v3", "linux/arm64", "linux/arm/v7"]), st.lists(names, max_size=8))
def test_what_is_chosen_is_acceptable_and_in_order(host: str, offered: list[str]) -> None:
    ranks = {one: rank for rank, one in enumerate(acceptable(platform(host)))}
    expected = sorted(
        (ranks[normalise(platform(text))] if text else len(ranks), place)
        for place, text in enumerate(offered)
        if not text or normalise(platform(text)) in ranks
    )
    if not expected:
        with pytest.raises(NotFound):
            chosen(host, *offered)
    else:
        assert chosen(host, *offered) == [place for _, place in expected]
