"""Runs every example of docs/http_api.md against a cluster of processes."""

import pathlib
import re
import subprocess
import sys

from serving import ROOT, Cluster

PAGE = ROOT / "docs/http_api.md"


def main():
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE.read_text(),
                        re.M | re.S)
    assert len(blocks) >= 5, "where are the examples?"
    with Cluster() as cluster:
        for language, code in blocks:
            code = code.replace("http://127.0.0.1:8080", cluster.root_url)
            code = code.replace("127.0.0.1:7070", cluster.address)
            print(f"--- {language}\n{code}", flush=True)
            command = (["bash", "-euc", code.replace("curl ", "curl -sf ")]
                       if language == "sh" else [sys.executable, "-c", code])
            done = subprocess.run(command, cwd=ROOT, capture_output=True,
                                  text=True, timeout=120)
            print(done.stdout[-400:], flush=True)
            if done.returncode != 0 or not done.stdout.strip():
                sys.exit(f"{PAGE}: this example failed:\n{done.stderr[-2000:]}")
        if cluster.close() != 0:
            sys.exit(cluster.said())
    print(f"{len(blocks)} examples work")


if __name__ == "__main__":
    main()
