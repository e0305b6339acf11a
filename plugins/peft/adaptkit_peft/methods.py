"""Facts about the PEFT types that their configuration classes do not contain: papers, learning rates, special cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: type -> name and paper
PAPERS = {
    "ADALORA": "AdaLoRA (Zhang et al., 2023, arXiv:2303.10512), at a fixed rank",
    "ADAMSS": "AdaMSS: trained subspaces of each weight's singular vectors",
    "BEFT": "BEFT (arXiv:2509.15974): a trained bias for each layer",
    "BOFT": "BOFT (Liu et al., 2023, arXiv:2311.06243): butterfly-factorised rotations of the weights",
    "C3A": "C3A (Chen et al., 2024, arXiv:2407.19342): circular convolution",
    "DEFT": "DEFT: a part of each weight is projected out and replaced",
    "DELORA": "DeLoRA (Bini et al., 2025, arXiv:2503.18225): normalised low-rank updates of bounded strength",
    "FOURIERFT": "FourierFT (Gao et al., 2024, arXiv:2405.03003): few coefficients of the update's spectrum",
    "FROD": "FRoD (doi:10.1609/aaai.v40i31.39813): sparse rotations in a basis shared by all layers",
    "GLORA": "GLoRA: low-rank changes of weights and biases, additive and multiplicative",
    "GRALORA": "GraLoRA (Jung et al., 2025, arXiv:2505.20355): a low-rank update for each block of the weight",
    "HIRA": "HiRA (Huang et al., 2025): a low-rank factor on each weight",
    "HRA": "HRA (Yuan et al., 2024, arXiv:2405.17484): Householder reflections",
    "IA3": "IA3 (Liu et al., 2022, arXiv:2205.05638): a trained factor for each output",
    "LILY": "Lily (arXiv:2407.09946): low-rank factors shared by layers",
    "LN_TUNING": "LN tuning (Zhao et al., 2023, arXiv:2312.11420): train the norm layers",
    "LOHA": "LoHa (Hyeon-Woo et al., 2021, arXiv:2108.06098): Hadamard products of low-rank updates",
    "LOKR": "LoKr (Yeh et al., 2023, arXiv:2309.14859): Kronecker products",
    "LORA": "PEFT's LoRA (Hu et al., 2021, arXiv:2106.09685), with its variants as options",
    "MISS": "MiSS (Kang and Yin, 2024, arXiv:2409.15371): one shared matrix for the shards of each weight",
    "OFT": "OFT (Qiu et al., 2023, arXiv:2306.07280): block-wise rotations of the weights",
    "OSF": "OSF: train the minor singular directions of each weight",
    "PEANUT": "PEANuT (arXiv:2410.01870): a small network turns each weight into its update",
    "PSOFT": "PSOFT: rotations in each weight's principal subspace",
    "PVERA": "PVeRA (arXiv:2512.07703): VeRA with a random latent",
    "RANDLORA": "RandLoRA (Albert et al., 2025, arXiv:2502.00987): scaled sums of random low-rank matrices",
    "ROAD": "RoAd (Liao and Monz, 2024, arXiv:2409.00119): rotations of pairs of outputs",
    "SHIRA": "SHiRA (Bhardwaj et al., 2024, arXiv:2406.13175): a sparse update",
    "SUPERTUNING": "Super-Tuning (arXiv:2607.09287): train the largest weights",
    "TINYLORA": "TinyLoRA (arXiv:2602.04118): a few numbers in each layer's singular directions",
    "UNILORA": "Uni-LoRA (Li et al., 2025, arXiv:2506.00799): all of LoRA from one vector",
    "VBLORA": "VB-LoRA (Li et al., 2024, arXiv:2405.15179): LoRA from a shared bank of vectors",
    "VERA": "VeRA (Kopiczko et al., 2023, arXiv:2310.11454): trained scales on random matrices shared by all layers",
    "WAVEFT": "WaveFT: few wavelet coefficients of the update",
}

#: learning rates that differ from the default
LEARNING_RATES = {
    # These train many weights directly, like full fine-tuning.
    "OSF": 1e-3,
    "SHIRA": 1e-3,
    "SUPERTUNING": 1e-3,
    # These train few scale factors. The value was chosen, not measured.
    "VERA": 1e-2,
    "PVERA": 1e-2,
}
LEARNING_RATE = 5e-3
#: largest default for networks with normalization layers: LoRA on EfficientNet-Lite0 diverges at 3e-3
DEEP_RATE = 1e-3

#: type that cannot be used, and is not measured -> reason
UNSUITABLE = {
    "ADAPTION_PROMPT": "it puts prompts into the attention layers of language models",
    "POLY": "its layers need the task of each input",
    "SHADOW": "it trains a second language model next to the first",
    "TRAINABLE_TOKENS": "it trains rows of a token embedding",
    "XLORA": "it mixes previously trained LoRA adapters in a transformers model",
}
#: the reason for all prompt methods
PROMPT = "it puts trained tokens before the input of a language model"

#: type -> required settings that are not options
SETTINGS: dict[str, dict[str, object]] = {
    # AdaLoRA's rank schedule needs the number of steps and its penalty needs PEFT's loss. Neither is used here.
    "ADALORA": {"total_step": 10**9},
    # Scale the outputs of all layers, not their inputs.
    "IA3": {"feedforward_modules": []},
    "FROD": {"progressbar": False},
}


@dataclass(frozen=True)
class Divisor:
    """An option whose value must divide the widths of all layers (`sides`: `in`, `out` or both).

    The default is the largest common divisor that is a multiple of `step` and at most `largest` (PEFT's default).
    With values below `least`, there would be nothing to train.
    """

    option: str
    sides: tuple[str, ...]
    largest: int
    step: int = 1
    least: int = 1


@dataclass(frozen=True)
class Limited:
    """An option of at most `room(in, out)` for each layer. The default is at most `largest` (PEFT's default)."""

    option: str
    room: Callable[[int, int], int]
    largest: int


#: type -> the option that depends on the widths of layers
FITTED: dict[str, Divisor | Limited] = {
    "BOFT": Divisor("boft_block_size", ("in",), 4, least=2),
    "C3A": Divisor("block_size", ("in", "out"), 256),
    "FOURIERFT": Limited("n_frequency", lambda ins, outs: ins * outs, 1000),
    "GRALORA": Divisor("gralora_k", ("in", "out"), 2),
    "MISS": Limited("r", lambda ins, outs: ins, 64),
    "PSOFT": Limited("r", min, 32),
    "ROAD": Divisor("group_size", ("out",), 64, step=2, least=2),
    "SHIRA": Limited("r", lambda ins, outs: ins * outs // (ins + outs), 32),
    "VBLORA": Divisor("vector_length", ("in", "out"), 256),
    "WAVEFT": Limited("n_frequency", lambda ins, outs: ins * outs, 2592),
}
