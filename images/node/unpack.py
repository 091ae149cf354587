"""Unpacks the packages that apt has downloaded, without installing them: for a stage of which only a tool is used."""
import glob
import io
import lzma
import tarfile


def members(path):
    with open(path, "rb") as package:
        package.read(8)  # !<arch>
        while header := package.read(60):
            size = int(header[48:58])
            yield header[:16].decode().strip().rstrip("/"), package.read(size + size % 2)[:size]


for deb in sorted(glob.glob("/var/cache/apt/archives/*.deb")):
    for name, data in members(deb):
        if name.startswith("data.tar"):
            plain = lzma.decompress(data) if name.endswith(".xz") else data
            with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
                archive.extractall("/")
