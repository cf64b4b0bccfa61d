"""Blobs and manifests by digest, kept beside the registry: on disk, and the small ones in memory.

This folder stores content and knows nothing of agents' rights. `gate/cached_pulls.py` decides who may read what, and
asks the registry whether the repository holds it.

    blob_cache.py      opens a blob, or starts its download, one for all who ask meanwhile
    blob_files.py      the folder: complete blobs, the oldest of which leave when room is needed
    download.py        one blob on its way from the registry to the disk, in a thread
    content.py         a blob that can be read, complete or growing, and a reader of it
    small_contents.py  manifests and configurations in memory

What it guarantees:

- Nobody gets the last byte of a blob before its digest is verified. Readers follow the download one byte behind its
  end, so a blob with another digest never reaches a client as a complete response.
- A file under a digest's name is complete, verified and on disk: it is written under another name, synchronized, and
  then renamed. What a crash leaves is under other names, and the next start removes it.
- A failing disk costs the cache, not the pull: a reader whose download failed continues with the registry.
- The event loop does not wait for the disk to read a blob: it takes what the page cache has (`preadv2(2)`,
  RWF_NOWAIT), and a thread brings the rest there. Only opening the file may have to wait, for its inode.
"""
