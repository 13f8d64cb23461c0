#!/usr/bin/env python3
"""Many streams at once over HTTP against a running gateway.

    tools/bench/http_streams.py --url 127.0.0.1:8080 --gateway-pid PID \
        [--streams 1000] [--minutes 10] [--max-tokens 128] [--refused 2000]

Keeps that many streams of server-sent events running: each connection asks
again as soon as its answer has ended, with the same few prompts and seeds, so
that every answer is known after the first of its kind. A stream counts as
failed when it is not answered with 200, is cut, holds an error, lacks its usage
or [DONE], or says something else than the first of its kind. With --refused so
many further connections are opened in the middle of the run; each of them must
be served or told 503. Prints the gateway's resident memory over time. Only the
standard library is used.
"""

import argparse
import asyncio
import collections
import json
import random
import time

PROMPTS = ["Once upon a time", "One day, a dog", "Lily and Ben", "The old tree"]


class Count:
    def __init__(self):
        self.ok = 0
        self.failed = collections.Counter()
        self.tokens = 0
        self.texts = {}
        self.first_token_s = []


def request(args, kind):
    body = json.dumps({
        "prompt": PROMPTS[kind % len(PROMPTS)], "seed": kind,
        "temperature": 0.8, "max_tokens": args.max_tokens, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True}}).encode()
    return (b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(body)) + body


async def events(reader):
    while size := int(await reader.readline(), 16):
        data = await reader.readexactly(size + 2)
        for line in data.decode().split("\n"):
            if line.startswith("data: "):
                yield line[6:]
    await reader.readline()


async def one(reader, writer, args, kind, count):
    start = time.monotonic()
    writer.write(request(args, kind))
    status = int((await reader.readline()).split()[1])
    length = 0
    while (line := await reader.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if status != 200:
        await reader.readexactly(length)
        count.failed[f"status {status}"] += 1
        await asyncio.sleep(0.5)
        return
    text, usage, last = "", None, ""
    async for last in events(reader):
        if last == "[DONE]":
            continue
        event = json.loads(last)
        if "error" in event:
            count.failed[event["error"]["message"][:60]] += 1
            return
        if not event["choices"]:
            usage = event["usage"]
            continue
        if not text:
            count.first_token_s.append(time.monotonic() - start)
        text += event["choices"][0]["text"]
        count.tokens += 1
    if last != "[DONE]" or usage is None:
        count.failed["no usage or no end"] += 1
    elif count.texts.setdefault(kind, text) != text:
        count.failed["another text"] += 1
    else:
        count.ok += 1


async def stream(args, index, count, end):
    await asyncio.sleep(random.random() * 5)
    writer = None
    while time.monotonic() < end:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(
                    *args.url.split(":"))
            await one(reader, writer, args, index % 8, count)
        except (OSError, ValueError, IndexError,
                asyncio.IncompleteReadError) as error:
            count.failed[type(error).__name__] += 1
            writer = None
            await asyncio.sleep(0.5)
    if writer is not None:
        writer.close()


async def refused(args, outcome):
    try:
        reader, writer = await asyncio.open_connection(*args.url.split(":"))
        writer.write(b"GET /health HTTP/1.1\r\nhost: bench\r\n\r\n")
        outcome[(await asyncio.wait_for(reader.readline(), 10)).split()[1]
                .decode()] += 1
        await asyncio.sleep(5)
        writer.close()
    except Exception as error:  # every outcome is counted
        outcome[type(error).__name__] += 1


def resident_kib(pid):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    return 0


async def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8080")
    parser.add_argument("--gateway-pid", type=int, required=True)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--refused", type=int, default=0)
    args = parser.parse_args()
    count, outcome = Count(), collections.Counter()
    start = time.monotonic()
    before = resident_kib(args.gateway_pid)
    end = start + 60 * args.minutes
    tasks = [asyncio.create_task(stream(args, i, count, end))
             for i in range(args.streams)]
    memory = []
    while time.monotonic() < end:
        await asyncio.sleep(5)
        memory.append(resident_kib(args.gateway_pid))
        print(f"{time.monotonic() - start:6.0f} s: {memory[-1]} KiB, "
              f"{count.ok} ok, {sum(count.failed.values())} failed, "
              f"{count.tokens} tokens", flush=True)
        if args.refused and len(memory) == 6:
            await asyncio.gather(*[refused(args, outcome)
                                   for _ in range(args.refused)])
    await asyncio.gather(*tasks)
    seconds = time.monotonic() - start
    first = sorted(count.first_token_s)
    print(json.dumps({
        "streams": args.streams, "seconds": round(seconds), "ok": count.ok,
        "failed": dict(count.failed),
        "tokens_per_s": round(count.tokens / seconds, 1),
        "ttft_p50_s": first[len(first) // 2] if first else None,
        "ttft_p99_s": first[int(len(first) * 0.99)] if first else None,
        "gateway_kib_before": before, "gateway_kib": memory,
        "further_connections": dict(outcome)}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
