"""Download pretrained weights from the Hugging Face Hub, or fail quickly."""

from __future__ import annotations

from pathlib import Path

from timm.models import PretrainedCfg

from adaptkit import BadInput

#: timeout for the Hub, in seconds
TIMEOUT = 5


def fetch(name: str, config: PretrainedCfg) -> Path:
    """Return the file with timm's weights of a model, from the local Hub cache or downloaded.

    Raises BadInput if the weights do not exist or cannot be downloaded.
    """
    advice = "use --weights FILE, or --weights none for random weights"
    if not config.hf_hub_id:
        where = f"are only at {config.url}" if config.url else "do not exist"
        raise BadInput(f"backbone timm:{name}: the pretrained weights {where}; {advice}")
    try:
        return fetch_file(f"backbone timm:{name}", config.hf_hub_id, _files(config))
    except BadInput as error:
        raise BadInput(f"{error}; {advice}") from None


def fetch_file(title: str, address: str, files: tuple[str, ...]) -> Path:
    """Return the first of these files in a repository of the Hub, from the local cache or downloaded.

    `address` can end in `@REVISION`. Raises BadInput, which begins with `title`, if no file can be downloaded.
    """
    repository, _, revision = address.partition("@")
    path = _cached(repository, files, revision or None)
    if path is not None:
        return path
    try:
        return _downloaded(repository, files, revision or None)
    except Exception as error:  # the Hub's client, its transport and the system raise many types
        what = "the pretrained weights" if files[-1] != "config.json" else "the config of"
        raise BadInput(f"{title}: {what} {address} cannot be downloaded ({_reason(error)})") from None


def _files(config: PretrainedCfg) -> tuple[str, ...]:
    """Return the possible names of the file on the Hub. Formats that cannot execute code come first."""
    file = config.hf_hub_filename or "pytorch_model.bin"
    safe = f"{file.replace('pytorch_', '').rpartition('.')[0]}.safetensors"
    return (file,) if file.endswith(".safetensors") else (safe, file)


def _cached(repository: str, files: tuple[str, ...], revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in files:
        path = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):
            return Path(path)
    return None


def _downloaded(repository: str, files: tuple[str, ...], revision: str | None) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    for file in files:
        try:
            # Check once first, because without a network the download retries for minutes.
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=TIMEOUT)
        except EntryNotFoundError:
            if file == files[-1]:
                raise
            continue
        return Path(hf_hub_download(repository, file, revision=revision))
    raise FileNotFoundError(repository)


def _reason(error: BaseException) -> str:
    """Return the first line of the original error."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return (str(error) or type(error).__name__).strip().split("\n")[0]
