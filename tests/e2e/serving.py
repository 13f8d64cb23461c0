"""A cluster for end-to-end tests: `troupe serve` on free ports, until closed."""

import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / "build/release/bin"
DEMO = ROOT / "models/demo"

# As such templates are: control tokens around each turn.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|endoftext|>' if loop.first else '' }}
{{- message['role'] | capitalize + ': ' + message['content'] | trim + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{% endif %}
"""


def chat_model(folder):
    """The demo model with a chat template: a folder of links."""
    folder = pathlib.Path(folder)
    for path in DEMO.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


class Cluster:
    """base_url: of the HTTP API. address: of gRPC."""

    def __init__(self, *flags, name="demo"):
        self._folder = tempfile.TemporaryDirectory()
        model = pathlib.Path(self._folder.name) / name
        model.mkdir()
        self._log = open(pathlib.Path(self._folder.name) / "log", "w+")
        self._process = subprocess.Popen(
            [BIN / "troupe", "serve", chat_model(model), "--experts", "2",
             "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
             "--drain-seconds", "5", *flags],
            stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ready = re.search(
                r"ready: gateway on (\S+), http://(\S+),", self.said())
            if ready:
                self.address, http = ready.groups()
                self.root_url = f"http://{http}"
                self.base_url = f"{self.root_url}/v1"
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        self.close()
        raise RuntimeError(f"troupe serve is not ready:\n{self.said()[-3000:]}")

    def said(self):
        return pathlib.Path(self._log.name).read_text()

    def close(self):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self._log.close()
        shutil.rmtree(self._folder.name, ignore_errors=True)
        self._folder.cleanup()
