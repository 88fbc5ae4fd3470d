"""A client that calls as fast as it can, as a process of its own: `python -m tests.load.client SOCKET CALLS AT_ONCE ...`.

It connects, writes "ready", waits for a line, makes its calls, and writes one line of JSON: for each kind of call the
seconds of each, and what failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc

from cri_shim.pb import api_pb2, api_pb2_grpc

REQUESTS = {
    "PullImage": lambda name, auth: api_pb2.PullImageRequest(image={"image": name}, auth=auth),
    "ImageStatus": lambda name, _: api_pb2.ImageStatusRequest(image={"image": name}),
    "ListImages": lambda *_: api_pb2.ListImagesRequest(),
    "ImageFsInfo": lambda *_: api_pb2.ImageFsInfoRequest(),
}


async def main(sock: str, kinds: str, calls: int, at_once: int, name: str, user: str) -> None:
    username, _, password = user.partition(":")
    auth = api_pb2.AuthConfig(username=username, password=password)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds.split(",")}
    failed: list[str] = []
    answers: set[str] = set()
    turns = iter([kind for _ in range(calls) for kind in seconds])

    async with grpc.aio.insecure_channel(f"unix:{sock}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        stub = api_pb2_grpc.ImageServiceStub(channel)
        await stub.ImageFsInfo(api_pb2.ImageFsInfoRequest())
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def work() -> None:
            for kind in turns:
                begun = time.monotonic()
                try:
                    answer = await getattr(stub, kind)(REQUESTS[kind](name, auth))
                except grpc.aio.AioRpcError as error:
                    failed.append(f"{kind}: {error.code().name}: {error.details()}")
                else:
                    seconds[kind].append(time.monotonic() - begun)
                    answers.add(getattr(answer, "image_ref", ""))

        begun = time.monotonic()
        await asyncio.gather(*(work() for _ in range(at_once)))
        span = (begun, time.monotonic())
    print(json.dumps({"seconds": seconds, "failed": failed, "answers": sorted(answers - {""}), "span": span}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:7]))
