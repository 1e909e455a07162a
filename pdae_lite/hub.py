"""Models on the Hugging Face hub: our one file, and a card made of its metadata. huggingface_hub is imported when it is
used."""
import tempfile
from pathlib import Path

from .checkpoint import CheckpointError, references, write_text

FILE, CARD = "model.safetensors", "README.md"
TEMPLATE = """---
library_name: pdae_lite
tags: [diffusion, autoencoder, representation-learning]
---
# {kind}

{what}. It was made with [pdae_lite](https://pypi.org/project/pdae_lite/):

```python
from pdae_lite import {kind}
model = {kind}.from_pretrained({name!r})
z = model.encode(images)
```

| | |
|---|---|
{rows}
"""


class Hub:
    """What an autoencoder has of the hub: three short methods."""

    @classmethod
    def from_pretrained(cls, folder_or_id, device="cpu", **options):
        """A model from a folder that `save_pretrained` wrote, or from the hub, by its id: fetched, unless it is in the
        hub's cache.

        Args:
            options: of `huggingface_hub.snapshot_download` (`revision`, `token`, `cache_dir`, `local_files_only`, …).

        Raises:
            CheckpointError: neither such a folder, nor to be had from the hub; a damaged file.
        """
        folder = Path(folder_or_id)
        if not folder.is_dir():
            try:
                folder = Path(_hub().snapshot_download(str(folder_or_id), allow_patterns=[FILE, CARD], **options))
            except Exception as e:  # no network, no such model, no right to it: each says it in its own way
                why = (str(e).strip() or type(e).__name__).splitlines()[0]
                raise CheckpointError(f"{folder_or_id}: neither a folder, nor to be had from the hub ({why})") from None
        return cls.load(folder / FILE, device)

    def save_pretrained(self, folder, metadata: dict | None = None, name: str | None = None) -> None:
        """Write the model, and a card unless there is one, into a folder. `metadata`: as for `save`; None: the model's
        own."""
        folder, metadata = Path(folder), getattr(self, "metadata", {}) if metadata is None else metadata
        self.save(folder / FILE, metadata)
        if not (folder / CARD).exists():
            write_text(folder / CARD, self.model_card(metadata, name or folder.name))

    def push_to_hub(self, name: str, metadata: dict | None = None, private: bool | None = None, **options) -> str:
        """Upload the model to the hub as `name`, "user/model", which is made if it isn't there; gives its address.

        Args:
            options: of `huggingface_hub.HfApi` (`token`, `endpoint`, …).

        Raises:
            ValueError: a part is kept by reference to a folder of this machine.
        """
        for part, source in references(self).items():
            if Path(source.name).is_absolute():
                raise ValueError(f"{part} is kept by reference to {source.name}, which others don't have; keep it by "
                                 "value")
        api = _hub().HfApi(**options)
        address = api.create_repo(name, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, metadata, name)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{type(self).__name__} by pdae_lite")
        return str(address)

    def model_card(self, metadata: dict, name: str) -> str:
        """The card's text, in Markdown."""
        kind, config = type(self).__name__, self.network.config
        facts = {"z_dim": self.z_dim, "channels": config.in_channels, "size": config.image_size, **metadata}
        what = "A pre-trained diffusion model as an autoencoder" if kind == "PDAE" else "A diffusion autoencoder"
        rows = "\n".join(f"| {key} | {str(value).replace('|', '/')} |" for key, value in facts.items())
        return TEMPLATE.format(kind=kind, what=what, name=name, rows=rows)


def _hub():
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError("huggingface_hub isn't installed; pip install 'pdae_lite[diffusers]'") from None
    return huggingface_hub
