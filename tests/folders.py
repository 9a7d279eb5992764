"""Tiny models on disk, in the formats that users bring: everything random and mild, nothing downloaded."""

import hashlib
import json
import shutil
import socket
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SENTENCES = [
    "the cat sat on the mat and looked at the rain",
    "a quiet garden is a fine place to read a book",
    "you silly goose, the train left an hour ago",
    "we walked along the river until the sun went down",
    "she made tea and he told her about the old house",
]
CLASSES = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
END = "<|endoftext|>"


def gpt2_folder(folder: Path, **config) -> Path:
    """A GPT-2 whose only special token is the end of text, which is also its padding."""
    tokenizer = _byte_bpe([END])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)
    size = {"n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2} | config
    torch.manual_seed(0)
    settings = transformers.GPT2Config(vocab_size=len(fast), bos_token_id=0, eos_token_id=0, **size)
    return _save(folder, transformers.GPT2LMHeadModel(settings), fast)


def llama_folder(folder: Path) -> Path:
    """A Llama whose tokenizer puts <s> before each text and has no padding."""
    tokenizer = _byte_bpe(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    return _save(folder, transformers.LlamaForCausalLM(settings), fast)


def bert_folder(folder: Path, model_class: str = "BertForMaskedLM") -> Path:
    """An encoder with its word tokenizer: a model, but not one that writes."""
    torch.manual_seed(0)
    return _save(folder, getattr(transformers, model_class)(_bert_config()), _word_tokenizer())


def classifier_folder(folder: Path, kind: str, labels: tuple[str, ...], **config) -> Path:
    """A sequence classifier of one of transformers' kinds (Bert, DistilBert, Roberta), its labels named."""
    names = dict(enumerate(labels))
    config |= {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    tokenizer = _word_tokenizer()
    if kind == "DistilBert":
        size = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 32}
        settings = transformers.DistilBertConfig(vocab_size=len(tokenizer), **size, **config)
    elif kind == "Roberta":
        bpe = _byte_bpe(["<s>", "<pad>", "</s>"])
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        settings = transformers.RobertaConfig(**(_bert_config(**config).to_dict() | {"vocab_size": 320, "pad_token_id": 1}))
    else:
        settings = _bert_config(**config)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(settings)
    with torch.no_grad():  # wilder than at its start, so that texts differ in their scores
        for weight in model.parameters():
            weight.mul_(8)
    return _save(folder, model, tokenizer)


def detoxify_checkpoint(folder: Path, *, extra: object = None, prefix: str = "", **arch) -> tuple[Path, Path]:
    """A checkpoint as Detoxify saves it, its hash in its name, and the folder of its config and tokenizer."""
    config = folder / "bert"
    config.mkdir(parents=True)
    _bert_config().save_pretrained(config)
    _word_tokenizer().save_pretrained(config)
    torch.manual_seed(0)
    classifier = transformers.BertForSequenceClassification(_bert_config(num_labels=len(CLASSES)))
    with torch.no_grad():  # wilder than at its start, so that texts differ in their scores
        for weight in classifier.parameters():
            weight.mul_(8)
    args = {
        "model_type": "bert-base-uncased",
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": len(CLASSES),
    }
    state = {prefix + name: tensor for name, tensor in classifier.state_dict().items()}
    saved = {"config": {"dataset": {"args": {"classes": CLASSES}}, "arch": {"args": args | arch}}, "state_dict": state}
    return save_checkpoint(folder, saved | ({"extra": extra} if extra else {})), config


def save_checkpoint(folder: Path, saved: object) -> Path:
    """Save anything under a name that ends in its hash, as Detoxify's releases are named."""
    draft = folder / "draft.ckpt"
    torch.save(saved, draft)
    return draft.rename(folder / f"toxic_tiny-{sha256(draft)[:8]}.ckpt")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fake_hub(home: Path, name: str, folder: Path) -> Path:
    """Lay a folder out as the hub's cache does after a download; -> the cache, for HF_HUB_CACHE."""
    root, revision = home / "hub" / f"models--{name.replace('/', '--')}", "0" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    shutil.copytree(folder, root / "snapshots" / revision)
    return home / "hub"


def block_network(monkeypatch) -> list[object]:
    """Make every connection fail; -> those that were tried."""
    tried: list[object] = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network in this test")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (socket, "create_connection")):
        monkeypatch.setattr(owner, name, refuse)
    return tried


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _byte_bpe(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _word_tokenizer() -> transformers.BertTokenizer:
    words = sorted({word.strip(",") for sentence in SENTENCES for word in sentence.split()})
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *words]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocab)})


def _bert_config(**changes) -> transformers.BertConfig:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertConfig(vocab_size=len(_word_tokenizer()), max_position_embeddings=32, **size, **changes)


def _save(folder: Path, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
