"""Archives as SageMaker and Lambda take them, made of text in a test, a benchmark or the conformance kit."""

import io
import tarfile
import zipfile

from local_aws.config import ROOT


def tar_gz(files: dict[str, str | bytes]) -> bytes:
    """A .tar.gz of these files, by path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def function_zip(source: str) -> bytes:
    """The package of a function whose handler is function.handler, for a managed Python or a custom runtime."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        package.writestr("function.py", source)
        bootstrap = zipfile.ZipInfo("bootstrap")
        bootstrap.external_attr = 0o755 << 16
        package.writestr(bootstrap, (ROOT / "lambdas" / "bootstrap").read_bytes())
    return buffer.getvalue()
