"""How heavily a pull counts beside others, from the pod that it is for.

kubelet sends the pod's namespace and annotations with every pull. A namespace is the cluster's to give; an annotation
is whoever's who may write pods, so it counts only where the operator names it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.registry.flow import HEAVIEST, LIGHTEST, ORDINARY

if TYPE_CHECKING:
    from cri_shim.config.schema import Config
    from cri_shim.pb import api_pb2


@dataclass(frozen=True, slots=True)
class Weights:
    """Which pulls are heavier or lighter than others.

    Attributes:
        namespaces: Those of the system.
        system: The weight of pulls for them.
        annotation: The key of a pod's annotation that has the weight of its pulls, "" for none.
    """

    namespaces: frozenset[str] = frozenset()
    system: int = ORDINARY
    annotation: str = ""

    def of(self, pod: api_pb2.PodSandboxConfig) -> int:
        """Return the weight of a pull for *pod*; what its annotation has is brought within the bounds, garbage ignored.

        *pod* may be empty: whoever asks without one is ordinary.
        """
        usual = self.system if pod.metadata.namespace in self.namespaces else ORDINARY
        said = pod.annotations.get(self.annotation, "") if self.annotation else ""
        return min(HEAVIEST, max(LIGHTEST, int(said))) if re.fullmatch("[0-9]{1,9}", said) else usual


ALIKE: Final = Weights()


def weights_of(config: Config) -> Weights:
    """Return the weights as *config* has them."""
    return Weights(frozenset(config.system_namespaces), config.system_weight, config.weight_annotation)
