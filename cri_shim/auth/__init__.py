"""Who may pull: credentials, where they come from, and in which order they are tried.

* `credential`  a credential and the secrets in it, which nothing can print; what a request's AuthConfig says
* `authfield`   the `auth` text of Docker's files and of AuthConfig; `servers` which host a credential is bound to
* `dockercfg`   the two file formats; `hostkey` how their keys are read; `keyring` which entry fits an image; `headers`
                which HTTP headers a file may add
* `files`, `search`  the kubelet's search paths, read afresh when they change; `authjson` those of podman and CRI-O
* `program`     how a program that knows credentials is run; `helpers` docker-credential programs
* `providerconfig`, `plugin`, `providers`  the kubelet's credential providers: configuration, one, all; `goduration`
* `flights`, `complaints`  one run for many threads, one WARNING for many failures
* `order`       one list per pull: request, node, anonymous; `worked` what opened a repository the last time
* `sources`     all of it as one object, which is what the rest of cri-shim asks

By default everything is as the kubelet does it (kubernetes: pkg/credentialprovider), which is what an operator expects
of files that the kubelet reads as well. It differs on purpose: a file that is skipped or shadowed is a WARNING;
credentials of Docker Hub are never given to `localhost/...`; a JSON file with a key twice is refused; a file or a
program that someone else could have written is refused; tokens, helpers and headers of the files are understood; a
provider does not get the whole environment. `merge` adds up all files instead of taking the first.
"""
