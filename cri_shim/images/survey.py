"""A look at everything that a catalog knows, one thing after another: documents, plain layers, forms of them.

Forms of a damaged layer are damaged with it and not looked at: their files are its files. What comes, goes or is put in
place anew while it is looked at is not judged. It can be begun where an earlier one has stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_shim.errors import ShimError
from cri_shim.executor import in_thread
from cri_shim.images.examine import RECORD_LOST, Examined, Flaw
from rootfs.errors import RootfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cri_shim.images.examine import Examiner, Manner
    from cri_shim.images.report import Report
    from cri_shim.store.catalog import Catalog, Layer
    from cri_shim.store.image import Image

    Done = Callable[[str], Awaitable[None]]


class Survey:
    """One look at all of the catalog that *catalog* returns, whose outcome goes to *report*."""

    def __init__(self, examiner: Examiner, catalog: Callable[[], Catalog], report: Report, manner: Manner) -> None:
        self._examiner = examiner
        self._catalog = catalog
        self._report = report
        self._manner = manner

    async def run(self, done: Done, after: str = "") -> None:
        """Look at everything that sorts behind *after*; call *done* with the place of each thing that was looked at."""
        images = {f"0 {image.id}": image for image in self._catalog().ordered()}
        layers = {_place(layer): layer for layer in self._catalog().layers.values()}
        places = sorted((*images, *layers))
        self._report.things = len(places)
        for place in places:
            if place > after:
                try:
                    await (self._image(images[place]) if place in images else self._layer(layers[place]))
                except (ShimError, RootfsError, OSError) as error:  # a failing disk, too, ends no look at the others
                    self._report.troubles.append(f"{place.rpartition(' ')[2]} could not be looked at: {error}")
                await done(place)
            self._report.done += 1

    async def _image(self, image: Image) -> None:
        self._report.now = str(image.id)
        content = self._manner.content
        flaws = await in_thread(self._examiner.documents, image, content=content)
        if self._catalog().images.get(image.id) is image:
            beyond = any(flaw.what != RECORD_LOST for flaw in flaws)
            self._report.take_documents(image, flaws, beyond_the_record=beyond)

    async def _layer(self, layer: Layer) -> None:
        self._report.now = layer.name
        if layer.form != "plain" and layer.diff_id.hex in self._report.layers:
            found = Examined((Flaw("", f"it shares the files of the damaged layer {layer.diff_id.hex}"),))
        else:
            found = await self._examiner.layer(layer, self._catalog(), self._manner)
        if self._catalog().layers.get(layer.name) is layer:
            self._report.take_layer(layer, found, self._catalog())


def _place(layer: Layer) -> str:
    return f"{1 if layer.form == 'plain' else 2} {layer.name}"
