"""Tiny random backbones of every supported family, saved the way real checkpoints are, and a few rows of data."""

import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sightline.world.tokenizer import build_tokenizer

SIDE, PATCH = 32, 8
GRID = (SIDE // PATCH) ** 2
TOWERS = ("clip", "siglip", "dinov2", "registers")
LANGUAGE_MODELS = ("llama", "phi3", "gemma", "qwen2")
TEXT = [
    "A chat between a curious user and an artificial intelligence assistant. "
    "USER: What colour is the ball? ASSISTANT: red",
    "a small red ball and a large blue box on a table\nhow many are there? two. is there a cat? yes, no",
]


def tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE: every text encodes, nothing is unknown. Without BOS it is like Qwen's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    inner.train_from_iterator(TEXT * 3, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>" if bos else None, eos_token="</s>")


def sentencepiece_tokenizer(*, legacy: bool) -> PreTrainedTokenizerFast:
    """Like Llama-2's: `▁` for spaces, bytes for what it does not know. Converted the old way (a normalizer puts a `▁`
    before every stretch between special tokens) or the new one (Metaspace, before the first only)."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *bytes_]
    trained.train_from_iterator(
        TEXT * 3, trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    inner = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def build_all(root: Path) -> dict[str, Path]:
    """Save every tower and language model under `root`."""
    torch.manual_seed(0)
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {**body, "image_size": SIDE, "patch_size": PATCH}
    text = {**body, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    dino = {k: v for k, v in vision.items() if k != "intermediate_size"}
    towers = {
        "clip": CLIPModel(CLIPConfig(vision_config=CLIPVisionConfig(**vision), text_config=CLIPTextConfig(**text))),
        "siglip": SiglipModel(
            SiglipConfig(vision_config=SiglipVisionConfig(**vision), text_config=SiglipTextConfig(**text))
        ),
        "dinov2": Dinov2Model(Dinov2Config(**dino)),
        "registers": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**dino, num_register_tokens=4)),
    }
    folders = {}
    for name, tower in towers.items():
        folders[name] = root / name
        tower.save_pretrained(folders[name])
        side = {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side).save_pretrained(folders[name])

    words = tokenizer()
    lm = {**body, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    lms = {
        "llama": LlamaForCausalLM(LlamaConfig(**lm, attention_dropout=0.1)),
        "tied": LlamaForCausalLM(LlamaConfig(**lm, tie_word_embeddings=True)),
        "phi3": Phi3ForCausalLM(Phi3Config(**lm)),
        "gemma": GemmaForCausalLM(GemmaConfig(**lm, num_key_value_heads=1, head_dim=16)),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**lm, num_key_value_heads=2)),
        "gemma2": Gemma2ForCausalLM(Gemma2Config(**lm, num_key_value_heads=1, head_dim=16)),
    }
    for name, model in lms.items():
        folders[name] = root / name
        model.save_pretrained(folders[name])
        (tokenizer(bos=False) if name == "qwen2" else words).save_pretrained(folders[name])
    return folders


def build_joint(root: Path) -> dict[str, Path]:
    """A CLIP and a SigLIP with both sides, tokenizer and image processor under `root`; no weight has a round value."""
    torch.manual_seed(0)
    words = build_tokenizer(append_eos=True, max_length=16)
    body = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = {**body, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": PATCH}
    text = {**body, "num_hidden_layers": 2, "vocab_size": len(words), "max_position_embeddings": 16}
    text |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    clip = CLIPConfig(vision_config=CLIPVisionConfig(**vision), text_config=CLIPTextConfig(**text), projection_dim=24)
    siglip = SiglipConfig(vision_config=SiglipVisionConfig(**vision), text_config=SiglipTextConfig(**text))
    folders = {}
    for name, model in (("clip", CLIPModel(clip)), ("siglip", SiglipModel(siglip))):
        for weights in model.parameters():
            weights.data += 0.1 * torch.randn_like(weights)
        folders[name] = root / name
        model.save_pretrained(folders[name])
        words.save_pretrained(folders[name])
        side = {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side).save_pretrained(folders[name])
    return folders


def build_diffusion(root: Path) -> Path:
    """A VAE, a denoiser and a VQ model, as the folders of a pipeline."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel, VQModel

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.1,
    ).save_pretrained(root / "vae")
    denoiser = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
    )
    for weights in denoiser.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    denoiser.save_pretrained(root / "transformer")
    vq = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=20,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vq.quantize.embedding.weight.data.normal_()
    vq.save_pretrained(root / "vqvae")
    return root


def write_pictures(root: Path) -> Path:
    """Twelve pictures of one colour each, captions and questions about them as LLaVA rows, and a question file."""
    colours = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 180, 30)}
    captions, chats, questions = [], [], []
    (root / "images").mkdir()
    for number in range(12):
        name, rgb = list(colours.items())[number % 3]
        file = f"{number}.png"
        Image.new("RGB", (40, 30) if number % 2 else (32, 32), rgb).save(root / "images" / file)
        human, answer = {"from": "human", "value": "<image>\nWhat colour is it?"}, {"from": "gpt", "value": name}
        captions.append(
            {"id": str(number), "image": file, "conversations": [human, {"from": "gpt", "value": f"a {name} box"}]}
        )
        chats.append({"id": f"q{number}", "image": file, "conversations": [human, answer]})
        questions.append({"id": f"t{number}", "image": file, "question": "What colour is it?", "answer": name})
    chats.append(
        {
            "id": "two",
            "image": ["0.png", "1.png"],
            "conversations": [
                {"from": "human", "value": "First <image> then <image>: the same?"},
                {"from": "gpt", "value": "no"},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "yes"},
            ],
        }
    )
    plain = [{"from": "human", "value": "Is snow white?"}, {"from": "gpt", "value": "yes"}]
    chats.append({"id": "text", "conversations": plain})
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "chats.json").write_text(json.dumps(chats))
    (root / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in questions))
    return root
