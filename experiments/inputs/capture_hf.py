"""Writes a capture: queries, keys and values of one attention layer of a Hugging Face decoder, after RoPE.

    python experiments/inputs/capture_hf.py --model meta-llama/Llama-3.2-1B --text book.txt --layer 8 --out capture.safetensors
    deno task quality recall --capture capture.safetensors

Needs `pip install torch transformers safetensors`. Works with decoders whose attention goes through transformers' attention
interface (transformers 4.48 and later: LLaMA, Qwen2, Qwen3, Mistral, Gemma and most others). `--tiny llama|qwen2|mistral`
makes a small randomly initialized model instead, without any download, to try the script; such keys have no structure, so
say nothing about quality.

What is written (safetensors): query [H, T, D], the last T positions; key [Hkv, N, D] and value [Hkv, N, D], all positions;
in the metadata the model, the layer and the versions. The prompt runs in one forward pass; nothing is generated.
"""

import argparse
import pathlib
import sys

NAME = "pq_capture"


class CaptureFailure(Exception):
    """What a user can mend."""


def parse(argv):
    parser = argparse.ArgumentParser(description="Captures queries, keys and values of one attention layer, after RoPE.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a name on the Hugging Face hub, or a folder")
    source.add_argument("--tiny", choices=["llama", "qwen2", "mistral"], help="a small random model, no download")
    parser.add_argument("--text", type=pathlib.Path, help="the prompt, a UTF-8 file (needed with --model)")
    parser.add_argument("--layer", type=int, default=None, help="which layer, from 0 (default: the one in the middle)")
    parser.add_argument("--kv-heads", default=None, help="KV heads to keep, with commas (default: all)")
    parser.add_argument("--tokens", type=int, default=16384, help="use at most so many tokens (default 16384)")
    parser.add_argument("--steps", type=int, default=64, help="keep the last so many queries (default 64)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16", help="of the file")
    parser.add_argument("--device", default=None, help="cuda, mps or cpu (default: the best that is there)")
    parser.add_argument("--seed", type=int, default=0, help="of the random model and prompt (--tiny)")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the file to write")
    return parser.parse_args(argv)


def check(args):
    if args.model and not args.text:
        raise CaptureFailure("Cannot capture as a model needs a prompt: give --text FILE")
    if args.text and not args.text.is_file():
        raise CaptureFailure(f"Cannot read the prompt as there must be a file: {args.text}")
    for name in ("tokens", "steps"):
        if getattr(args, name) < 1:
            raise CaptureFailure(f"Cannot capture as --{name} must be 1 at least: it is {getattr(args, name)}")
    if args.out.parent != pathlib.Path() and not args.out.parent.is_dir():
        raise CaptureFailure(f"Cannot write the capture as its folder must exist: {args.out.parent}")


def tiny_model(kind, seed, tokens):
    import torch
    import transformers

    torch.manual_seed(seed)
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    }[kind]
    config = config_class(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max(tokens, 4096),
        sliding_window=None,
    )
    return model_class(config), torch.randint(0, 512, (1, tokens))


def hub_model(name, text, tokens):
    import torch
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto")
    except (OSError, ValueError) as error:
        raise CaptureFailure(f"Cannot load {name} as transformers must find and know it: {error}") from error
    ids = tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :tokens]
    if ids.shape[1] < 1:
        raise CaptureFailure(f"Cannot capture as the prompt must have tokens: {text} has none")
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and ids.shape[1] > most:
        raise CaptureFailure(f"Cannot capture as {name} reads {most} tokens at most: the prompt has {ids.shape[1]}; give --tokens")
    return model, ids


def capture(model, ids, layer, steps, device):
    """query [H, T, D], key and value [Hkv, N, D] of one layer, as its attention function gets them."""
    import torch

    try:
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
    except ImportError as error:
        raise CaptureFailure("Cannot capture as transformers must have AttentionInterface: install 4.48 or later") from error

    taken = {}

    def attention(module, query, key, value, attention_mask, **options):
        if getattr(module, "layer_idx", None) == layer:
            taken["query"] = query[0, :, -steps:].detach().to("cpu", copy=True)
            taken["key"] = key[0].detach().to("cpu", copy=True)
            taken["value"] = value[0].detach().to("cpu", copy=True)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    AttentionInterface.register(NAME, attention)
    try:  # masks are made by the name of the attention function: ours are those of sdpa
        from transformers import AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionMaskInterface.register(NAME, sdpa_mask)
    except ImportError:
        pass
    model.set_attn_implementation(NAME) if hasattr(model, "set_attn_implementation") else setattr(
        model.config, "_attn_implementation", NAME
    )
    model.eval().to(device)
    with torch.inference_mode():
        model(ids.to(device), use_cache=False)
    if not taken:
        raise CaptureFailure(
            f"Cannot capture as layer {layer} must attend through transformers' attention interface: "
            f"{type(model).__name__} does not"
        )
    return taken


def main(argv):
    args = parse(argv)
    check(args)
    try:
        import safetensors.torch
        import torch
        import transformers
    except ImportError as error:
        raise CaptureFailure(f"Cannot capture without {error.name}: pip install torch transformers safetensors") from error

    device = args.device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    print(f"loading {args.model or 'a tiny ' + args.tiny} …", file=sys.stderr)
    if args.tiny:
        model, ids = tiny_model(args.tiny, args.seed, args.tokens)
    else:
        model, ids = hub_model(args.model, args.text, args.tokens)
    layers = model.config.num_hidden_layers
    layer = layers // 2 if args.layer is None else args.layer
    if not 0 <= layer < layers:
        raise CaptureFailure(f"Cannot capture as --layer must be 0 to {layers - 1}: it is {layer}")
    tokens, steps = ids.shape[1], min(args.steps, ids.shape[1])
    print(f"{tokens} tokens through {layers} layers on {device} …", file=sys.stderr)
    taken = capture(model, ids, layer, steps, device)

    kv_heads, group = taken["key"].shape[0], taken["query"].shape[0] // taken["key"].shape[0]
    try:
        kept = list(range(kv_heads)) if args.kv_heads is None else [int(head) for head in args.kv_heads.split(",")]
    except ValueError:
        kept = [-1]
    if not kept or any(not 0 <= head < kv_heads for head in kept):
        raise CaptureFailure(f"Cannot capture as --kv-heads must be numbers 0 to {kv_heads - 1}: {args.kv_heads}")
    query_heads = [head * group + g for head in kept for g in range(group)]
    dtype = getattr(torch, args.dtype)
    tensors = {
        "query": taken["query"][query_heads],
        "key": taken["key"][kept],
        "value": taken["value"][kept],
    }
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise CaptureFailure(f"Cannot write the capture as {name} must be finite in {args.dtype}: try --dtype float32")
    metadata = {
        "model": args.model or f"random {args.tiny}, seed {args.seed}",
        "layer": f"{layer} of {layers}",
        "kv_heads": ",".join(map(str, kept)),
        "after": "RoPE",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    safetensors.torch.save_file(tensors, args.out, metadata=metadata)
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    print(f"written: {args.out} ({shapes}, {args.dtype})", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CaptureFailure as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(1)
