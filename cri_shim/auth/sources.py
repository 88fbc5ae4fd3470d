"""Every source of credentials on one node, and the one order of them that a pull tries.

The request first; then the kubelet's own order: its credential files, and last its credential providers. What the
kubelet does not know stands where the tools that do know it would have it: a docker-credential helper behind the
entries of the file that names it, containers-auth.json(5) between the files and the providers. Last comes no credential
at all. Each source can be switched off. What opened a repository goes to the front of the node's part the next time.

Lookups read files and may start programs: they are for a thread that may wait for a minute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cri_shim.auth.credential import REQUEST, Credential
from cri_shim.auth.headers import is_for_all
from cri_shim.auth.helpers import helper_for, own_helper
from cri_shim.auth.order import listed
from cri_shim.auth.search import InUse
from cri_shim.auth.servers import is_for
from cri_shim.auth.worked import Worked

if TYPE_CHECKING:
    from cri_shim.auth.authjson import AuthFiles
    from cri_shim.auth.credential import Secret
    from cri_shim.auth.helpers import Helpers
    from cri_shim.auth.providers import Providers
    from cri_shim.auth.search import FileInUse, SearchPaths
    from cri_shim.oci.reference import Reference

MIRROR_KEPT_SECONDS: Final = 60.0
"""How old a helper's answer may be where a mirror is asked: that is looked up for every blob, not once per pull."""


class Sources:
    """The credentials of one node. Safe from any thread."""

    def __init__(
        self,
        search: SearchPaths | None = None,
        *,
        helpers: Helpers | None = None,
        auth_files: AuthFiles | None = None,
        providers: Providers | None = None,
        request: bool = True,
        anonymous: bool = True,
    ) -> None:
        """A source that is None or False is off; *helpers* are those that the files of *search* name."""
        self._search = search
        self._helpers = helpers
        self._auth_files = auth_files
        self._providers = providers
        self._request = request
        self._anonymous = anonymous
        self._worked = Worked()

    def credentials(self, reference: Reference, given: Credential | None) -> tuple[Credential, ...]:
        """List what to try for *reference*, in order; *given* is what came with the request."""
        found = self._worked.first(reference.name, self._of_node(reference.name, 0.0))
        return listed(given if self._request else None, found, reference, anonymous=self._anonymous)

    def for_mirror(self, name: str) -> tuple[Credential, ...]:
        """List what this node has for a repository on a mirror ("mirror.corp:5000/library/nginx"), in order."""
        return self._of_node(name, MIRROR_KEPT_SECONDS)

    def http_headers(self, reference: Reference) -> tuple[tuple[str, Secret], ...]:
        """Give the headers that go along with requests for *reference*, to its own registry only.

        They are those of the credential files in use (see `headers`); of two with one name the earlier file's counts.
        """
        found: dict[str, tuple[str, Secret]] = {}
        for file in self._in_use().files:
            known = self._knows(file, reference) if file.config.http_headers else False
            for name, value in file.config.http_headers:
                if known or is_for_all(name):
                    found.setdefault(name.lower(), (name, value))
        return tuple(found.values())

    def worked(self, reference: Reference, credential: Credential) -> None:
        """Remember what opened *reference*.

        The request's own is not remembered: the next caller is another. Nor is having needed none, or a public image
        would be pulled without the credential that the operator gave for it (and that Docker Hub counts by).
        """
        ours = credential.source != REQUEST and is_for(credential.server, reference.registry)
        if ours and not credential.anonymous:
            self._worked.note(reference.name, credential)

    def _of_node(self, name: str, kept_seconds: float) -> tuple[Credential, ...]:
        return (
            *self._of_files(name, kept_seconds),
            *(self._auth_files.lookup(name, kept_seconds=kept_seconds) if self._auth_files else ()),
            *(self._providers.lookup(name) if self._providers else ()),
        )

    def _of_files(self, name: str, kept_seconds: float) -> tuple[Credential, ...]:
        """Give what the kubelet's files have: entries, then what their helpers say.

        Docker leaves an empty entry beside a helper. When the helper has a credential such an entry is not the
        anonymous try that it is to the kubelet: a registry might answer that with "not found", which ends the search.
        """
        in_use = self._in_use()
        found = in_use.keyring.lookup(name)
        helped = self._of_helpers(in_use, name.partition("/")[0], kept_seconds)
        return (*(one for one in found if not (helped and one.anonymous)), *helped)

    def _of_helpers(self, in_use: InUse, registry: str, kept_seconds: float) -> tuple[Credential, ...]:
        if self._helpers is None:
            return ()
        named = dict.fromkeys(helper_for(file.config, registry) for file in in_use.files)
        asked = [self._helpers.ask(name, registry, kept_seconds=kept_seconds) for name in named if name]
        return tuple(credential for credential in asked if credential is not None)

    def _in_use(self) -> InUse:
        return InUse() if self._search is None else self._search.current()

    def _knows(self, file: FileInUse, reference: Reference) -> bool:
        """Tell whether a file has a credential for an image, or names a helper for its registry."""
        return bool(file.keyring.lookup(reference.name)) or own_helper(file.config, reference.registry) is not None
