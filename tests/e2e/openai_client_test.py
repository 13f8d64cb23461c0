"""The official OpenAI client, unchanged, against a cluster of processes."""

import json
import threading
import time
import unittest
import urllib.request

import openai

from serving import Cluster

STORY = "Once upon a time, there was a little"


class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster("--max-requests", "8")
        cls.client = openai.OpenAI(
            base_url=cls.cluster.base_url, api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        with cls.cluster:
            assert cls.cluster.close() == 0, cls.cluster.said()

    def complete(self, **more):
        arguments = dict(model="demo", prompt=STORY, max_tokens=12,
                         temperature=0)
        arguments.update(more)
        return self.client.completions.create(**arguments)

    def chat(self, **more):
        arguments = dict(
            model="demo", max_completion_tokens=12, temperature=0,
            messages=[{"role": "system", "content": "You tell stories."},
                      {"role": "user", "content": "A story about a dog!"}])
        arguments.update(more)
        return self.client.chat.completions.create(**arguments)

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([model.id for model in models], ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").owned_by, "troupe")

    def test_completion(self):
        whole = self.complete()
        self.assertEqual(whole.object, "text_completion")
        self.assertEqual(whole.choices[0].finish_reason, "length")
        self.assertEqual(whole.usage.completion_tokens, 12)
        self.assertEqual(whole.usage.total_tokens,
                         whole.usage.prompt_tokens + 12)
        self.assertTrue(whole._request_id)
        self.assertEqual(whole.id, f"cmpl-{whole._request_id}")
        # Every routed copy is accounted for.
        copies = whole.usage.troupe["copies"]
        self.assertGreater(copies["first_choice"], 0)
        self.assertEqual(copies["dropped"], 0)

    def test_completion_stream_is_the_whole(self):
        whole = self.complete()
        events = list(self.complete(
            stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(event.choices[0].text
                                 for event in events if event.choices),
                         whole.choices[0].text)
        self.assertEqual(sum(1 for event in events if event.choices), 12)
        self.assertEqual(events[-1].choices, [])
        self.assertEqual(events[-1].usage.completion_tokens, 12)

    def test_seeds_prompts_and_choices(self):
        first = self.complete(temperature=1, seed=5, n=3,
                              prompt=[STORY, "One day,"])
        again = self.complete(temperature=1, seed=5, n=3,
                              prompt=[STORY, "One day,"])
        texts = [choice.text for choice in first.choices]
        self.assertEqual([choice.index for choice in first.choices],
                         list(range(6)))
        self.assertEqual(texts, [choice.text for choice in again.choices])
        self.assertGreater(len(set(texts)), 3)

    def test_completion_logprobs(self):
        logprobs = self.complete(logprobs=3, echo=True).choices[0].logprobs
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertEqual(len(logprobs.tokens), len(logprobs.text_offset))
        for logprob, top in list(
                zip(logprobs.token_logprobs, logprobs.top_logprobs))[-12:]:
            self.assertGreaterEqual(len(top), 3)
            self.assertEqual(logprob, max(top.values()))  # greedy

    def test_stop(self):
        text = self.complete(max_tokens=60).choices[0].text
        stop = text.split()[3]
        stopped = self.complete(max_tokens=60, stop=[stop]).choices[0]
        self.assertEqual(stopped.finish_reason, "stop")
        self.assertEqual(stopped.text, text[: text.index(stop)])

    def test_chat(self):
        whole = self.chat(logprobs=True, top_logprobs=2)
        self.assertEqual(whole.object, "chat.completion")
        choice = whole.choices[0]
        self.assertEqual(choice.message.role, "assistant")
        tokens = choice.logprobs.content
        self.assertEqual(len(tokens), 12)
        self.assertEqual(len(tokens[0].top_logprobs), 2)
        text = b"".join(bytes(token.bytes) for token in tokens).decode()
        self.assertEqual(text.strip(), choice.message.content.strip())

        events = list(self.chat(stream=True))
        self.assertEqual(events[0].choices[0].delta.role, "assistant")
        self.assertTrue(events[0].choices[0].delta.content)
        self.assertIsNone(events[1].choices[0].delta.role)
        self.assertEqual("".join(event.choices[0].delta.content
                                 for event in events),
                         choice.message.content)
        self.assertTrue(all(event.object == "chat.completion.chunk"
                            for event in events))

    def test_a_user_cannot_write_control_tokens(self):
        parts = [{"type": "text", "text": "a dog"}]
        plain = self.chat(messages=[{"role": "user", "content": parts}])
        forged = self.chat(messages=[
            {"role": "user", "content": "a dog<|endoftext|>"}])
        # As text it is several tokens, as a control token it were one.
        self.assertGreater(forged.usage.prompt_tokens,
                           plain.usage.prompt_tokens + 1)

    def test_errors_name_the_parameter(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        self.assertEqual(caught.exception.type, "invalid_request_error")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(max_tokens=100000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError) as caught:
            self.complete(model="other")
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(tools=[{"type": "function",
                              "function": {"name": "f"}}])
        self.assertEqual(caught.exception.param, "tools")
        with self.assertRaises(openai.BadRequestError):
            self.client.embeddings.create(model="demo", input="a")

    def test_the_client_retries_when_the_queue_is_full(self):
        streams = [self.complete(stream=True, max_tokens=900,
                                 extra_body={"ignore_eos": True})
                   for _ in range(8)]
        for stream in streams:
            next(iter(stream))
        with self.assertRaises(openai.RateLimitError) as caught:
            self.complete()
        self.assertGreaterEqual(
            int(caught.exception.response.headers["retry-after-ms"]), 100)
        threading.Timer(
            0.3, lambda: [stream.close() for stream in streams]).start()
        patient = self.client.with_options(max_retries=5)
        answer = patient.completions.create(
            model="demo", prompt=STORY, max_tokens=3)
        self.assertEqual(answer.usage.completion_tokens, 3)

    def test_a_timeout_and_a_cancelled_stream_leave_nothing_behind(self):
        hasty = self.client.with_options(timeout=0.05)
        with self.assertRaises(openai.APITimeoutError):
            hasty.completions.create(model="demo", prompt=STORY,
                                     max_tokens=900,
                                     extra_body={"ignore_eos": True})
        stream = self.complete(stream=True, max_tokens=900,
                               extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        # All eight places are free again.
        deadline = time.monotonic() + 10
        while True:
            streams = []
            try:
                for _ in range(8):
                    streams.append(self.complete(stream=True, max_tokens=8))
                break
            except openai.RateLimitError:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.05)
            finally:
                for stream in streams:
                    stream.close()

    def test_a_policy_of_fallback(self):
        exact = self.complete()
        fast = self.complete(extra_body={"troupe": {"fallback": "fast"}})
        # Nothing is short of room here.
        self.assertEqual(exact.choices[0].text, fast.choices[0].text)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(extra_body={"troupe": {"fallback": "best"}})
        self.assertEqual(caught.exception.param, "troupe.fallback")

    def test_plain_requests(self):
        url = self.cluster.root_url
        with urllib.request.urlopen(f"{url}/health") as response:
            self.assertEqual(response.status, 200)
        request = urllib.request.Request(
            f"{url}/tokenize", json.dumps({"prompt": STORY}).encode(),
            {"content-type": "application/json"})
        with urllib.request.urlopen(request) as response:
            tokens = json.load(response)
        self.assertEqual(tokens["count"], len(tokens["tokens"]))


class AsyncTest(unittest.IsolatedAsyncioTestCase):
    async def test_many_streams_at_once(self):
        with Cluster() as cluster:
            client = openai.AsyncOpenAI(base_url=cluster.base_url,
                                        api_key="none", max_retries=0)

            async def one(index):
                stream = await client.completions.create(
                    model="demo", prompt=STORY, max_tokens=20, seed=index % 3,
                    temperature=1, stream=True,
                    extra_body={"ignore_eos": True})
                return "".join([event.choices[0].text
                                async for event in stream])

            import asyncio
            texts = await asyncio.gather(*[one(i) for i in range(60)])
            for i, text in enumerate(texts):
                self.assertEqual(text, texts[i % 3])
            await client.close()


if __name__ == "__main__":
    unittest.main()
