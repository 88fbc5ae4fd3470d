"""Messages are made once per image, lists once per set, and batches keep to their bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cri_shim.errors import LimitExceeded
from cri_shim.pb import api_pb2
from cri_shim.server import listing as listing_module
from cri_shim.server.convert import Spelling
from cri_shim.server.listing import LARGEST_BATCH, LARGEST_BATCH_BYTES, LARGEST_MESSAGE_BYTES, Listing
from tests.server.conftest import digest, make_image

IMAGE = make_image()


class CountingSpelling(Spelling):
    made = 0

    def image(self, image):
        self.made += 1
        return super().image(image)


@pytest.fixture
def spelling():
    return CountingSpelling("none")


@pytest.fixture
def listing(spelling):
    return Listing(spelling)


def read(answer: bytes) -> api_pb2.ListImagesResponse:
    return api_pb2.ListImagesResponse.FromString(answer)


def many(count: int):
    return tuple(replace(IMAGE, id=digest(str(number))) for number in range(count))


def test_a_message_is_made_once_as_long_as_the_image_is_the_same(listing, spelling):
    assert listing.message(IMAGE) is listing.message(IMAGE)
    assert spelling.made == 1


def test_an_image_that_changed_has_another_message(listing):
    moved = replace(IMAGE, tags=())
    assert list(listing.message(IMAGE).repo_tags) == ["reg.io/app:1"]
    assert list(listing.message(moved).repo_tags) == []
    assert list(listing.message(IMAGE).repo_tags) == ["reg.io/app:1"]


def test_a_list_is_made_once_as_long_as_the_tuple_is_the_same(listing, spelling):
    images = many(5)
    first = listing.whole(images)
    assert listing.whole(images) is first
    more = (*images, replace(IMAGE, id=digest("more")))
    assert [image.id for image in read(listing.whole(more)).images] == [str(image.id) for image in more]
    assert spelling.made == 6
    assert listing.whole(()) == b""


def test_a_list_travels_as_protobuf_itself_would_write_it(listing, spelling):
    images = (*many(3), replace(IMAGE, tags=("y" * 300,), user="0", annotations=(("a", "b"),)))
    message = api_pb2.ListImagesResponse(images=map(spelling.image, images))
    assert listing.whole(images) == message.SerializeToString(deterministic=True)
    assert listing.some(images[1:2]) == api_pb2.ListImagesResponse(images=message.images[1:2]).SerializeToString()


def test_images_that_are_gone_are_not_kept(listing, monkeypatch):
    images = many(5)
    listing.whole(images)
    listing.whole(images[:2])
    assert len(listing._made) == 2
    monkeypatch.setattr(listing_module, "_MOST_KEPT", 10)
    for image in many(100):
        listing.message(image)
    assert len(listing._made) <= 10


def image_of(size_bytes: int):
    """An image whose entry in a list takes exactly *size_bytes*."""
    image = replace(IMAGE, tags=("y" * size_bytes,))
    over = api_pb2.ListImagesResponse(images=[Spelling("none").image(image)]).ByteSize() - size_bytes
    return replace(IMAGE, tags=("y" * (size_bytes - over),))


def test_a_list_as_large_as_clients_take_passes_and_a_larger_one_says_what_to_do(listing):
    assert len(listing.whole((image_of(LARGEST_MESSAGE_BYTES),))) == LARGEST_MESSAGE_BYTES
    over = (image_of(LARGEST_MESSAGE_BYTES + 1),)
    for _ in range(2):
        with pytest.raises(LimitExceeded, match=f"1 images takes {LARGEST_MESSAGE_BYTES + 1} bytes.*StreamImages"):
            listing.whole(over)


@pytest.mark.parametrize(
    ("count", "batches"), [(0, []), (1, [1]), (200, [200]), (201, [200, 1]), (450, [200, 200, 50])]
)
def test_batches_by_count(listing, count, batches):
    images = many(count)
    found = [api_pb2.StreamImagesResponse.FromString(batch) for batch in listing.batches(images)]
    assert [len(batch.images) for batch in found] == batches
    assert [message.id for batch in found for message in batch.images] == [f"sha256:{image.id.hex}" for image in images]
    assert LARGEST_BATCH == 200


def test_batches_by_size(listing):
    images = [replace(IMAGE, tags=("y" * 400_000,))] * 5
    found = list(listing.batches(images))
    assert [len(read(batch).images) for batch in found] == [2, 2, 1]
    assert all(len(batch) < LARGEST_BATCH_BYTES + 100 for batch in found)


def test_an_image_larger_than_a_batch_goes_alone(listing):
    images = [IMAGE, replace(IMAGE, tags=("y" * (LARGEST_BATCH_BYTES + 1),)), IMAGE]
    assert [len(read(batch).images) for batch in listing.batches(images)] == [1, 1, 1]
