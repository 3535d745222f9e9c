"""The folder: `export_bundle`, manifest, packs."""
