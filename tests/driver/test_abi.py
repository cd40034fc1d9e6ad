"""What numba_swap declares of ``cuda.h`` is held to NVIDIA's own headers by a C compiler.

The headers are those of installed wheels and toolkits, and those that
``scripts/fetch_drivers --headers`` has fetched. A CUDA 12 from 12.8 on and a CUDA 13 are needed.
"""

import ctypes
import os
import re
import runpy
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from numba_swap.driver import abi

ROOT = Path(__file__).parents[2]
SERIES = {"12": range(12080, 13000), "13": range(13000, 14000)}
PREAMBLE = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <cuda.h>
#include <cudaTypedefs.h>
#define KIND(x) __builtin_classify_type(x)
#define IS(x, type) __builtin_types_compatible_p(__typeof__(x), type)
/* An enumeration is compatible with its integer type, but with no other enumeration. */
enum unsigned_enum { ZERO };
enum signed_enum { MINUS_ONE = -1 };
#define IS_ENUM(x) \\
    (IS(x, unsigned) ? !IS(x, enum unsigned_enum) : IS(x, int) && !IS(x, enum signed_enum))
"""
MAIN = "int main(void) { return 0; }\n"

STRUCTURES = {
    abi.MemLocation: "CUmemLocation",
    abi.MemcpyAttributes: "CUmemcpyAttributes",
    abi.Memcpy3D: "CUDA_MEMCPY3D",
    abi.Extent3D: "CUextent3D",
    abi.Memcpy3DOperand: "CUmemcpy3DOperand",
    abi.Memcpy3DBatchOp: "CUDA_MEMCPY3D_BATCH_OP",
}
# Members that the headers do not spell as `camel_case` does.
MEMBERS = {
    abi.Memcpy3D: {
        "src_lod": "srcLOD",
        "dst_lod": "dstLOD",
        "width_in_bytes": "WidthInBytes",
        "height": "Height",
        "depth": "Depth",
    },
    abi.Memcpy3DOperand: {
        "address": "op.ptr.ptr",
        "row_length": "op.ptr.rowLength",
        "layer_height": "op.ptr.layerHeight",
        "loc_hint": "op.ptr.locHint",
    },
}
PROTOTYPES = [abi.GET_PROC_ADDRESS_V1, abi.GET_PROC_ADDRESS_V2, *abi.PROTOTYPES.values()]

# Our names of constants, and how the headers spell them: exact names first, then prefixes.
CONSTANTS = {
    "SUCCESS": "CUDA_SUCCESS",
    "SYMBOL_FOUND": "CU_GET_PROC_ADDRESS_SUCCESS",
    "SYMBOL_NOT_FOUND": "CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND",
    "VERSION_NOT_SUFFICIENT": "CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT",
    "PROC_ADDRESS_DEFAULT": "CU_GET_PROC_ADDRESS_DEFAULT",
    "SIZE_MAX": "SIZE_MAX",
    "POINTER_RANGE_START": "CU_POINTER_ATTRIBUTE_RANGE_START_ADDR",
}
PREFIXES = {
    "ERROR_": "CUDA_ERROR_",
    "MEMORYTYPE_": "CU_MEMORYTYPE_",
    "POINTER_": "CU_POINTER_ATTRIBUTE_",
    "DEVICE_": "CU_DEVICE_ATTRIBUTE_",
    "P2P_": "CU_DEVICE_P2P_ATTRIBUTE_",
    "STREAM_": "CU_STREAM_",
    "CAPTURE_": "CU_STREAM_CAPTURE_",
    "EVENT_": "CU_EVENT_",
    "MEM_HOST_ALLOC_": "CU_MEMHOSTALLOC_",
    "MEM_ATTACH_": "CU_MEM_ATTACH_",
    "SRC_ACCESS_ORDER_": "CU_MEMCPY_SRC_ACCESS_ORDER_",
    "OPERAND_TYPE_": "CU_MEMCPY_OPERAND_TYPE_",
}


# -- headers ------------------------------------------------------------------------------------


def cuda_version(folder):
    """CUDA_VERSION of the headers in a folder, or None if they are not there."""
    if not all((folder / name).is_file() for name in ("cuda.h", "cudaTypedefs.h")):
        return None
    text = (folder / "cuda.h").read_text(errors="replace")
    return int(re.search(r"#define\s+CUDA_VERSION\s+(\d+)", text)[1])


def find_headers():
    """Pytest parameters: one folder for each CUDA version, None for each series without any."""
    site = Path(sysconfig.get_path("purelib"))
    cache = runpy.run_path(str(ROOT / "scripts" / "fetch_drivers"))["cache_folder"]()
    folders = [
        *site.glob("nvidia/*/include"),
        *sorted(Path("/usr/local").glob("cuda*/include")),
        *sorted(cache.glob("headers/*")),
    ]
    found = {}
    for folder in folders:
        version = cuda_version(folder)
        if version and version >= min(SERIES["12"]) and version not in found:
            fetched = cache in folder.parents
            marks = [pytest.mark.museum] if fetched else []
            found[version] = pytest.param(folder, id=str(version), marks=marks)
    for series, versions in SERIES.items():
        if not any(version in versions for version in found):
            marks = [pytest.mark.museum]
            found[versions.start] = pytest.param(None, id=f"{series}.x-missing", marks=marks)
    return [found[version] for version in sorted(found)]


@pytest.fixture(scope="session", params=find_headers())
def headers(request):
    """Folder with cuda.h and cudaTypedefs.h; a C compiler is there as well."""
    if request.param and shutil.which("gcc"):
        return request.param
    reason = "no cuda.h of this series: run scripts/fetch_drivers --headers"
    if request.param:
        reason = "no C compiler: install gcc"
    if os.environ.get("CI", "") not in ("", "0", "false"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def compile_c(headers, tmp_path):
    """Compile C text against the headers; return the program's path and the compiler's errors."""

    def run(text):
        source, program = tmp_path / "check.c", tmp_path / "check"
        source.write_text(PREAMBLE + text)
        command = ["gcc", "-std=gnu11", "-Wall", "-Wno-unused", f"-isystem{headers}", "-o", program]
        result = subprocess.run(
            [*command, source], capture_output=True, text=True, check=False, timeout=120
        )
        errors = [line for line in result.stderr.splitlines() if "error:" in line]
        assert not result.returncode or errors, result.stderr
        return program, [line.partition("error: ")[2] for line in errors]

    return run


@pytest.fixture
def c_values(compile_c):
    """Evaluate C integer expressions; those that the headers do not know are an error."""

    def evaluate(expressions):
        lines = (f'printf("%llu\\n", (unsigned long long)({e}));' for e in expressions)
        body = "\n".join(lines)
        program, errors = compile_c(f"int main(void) {{\n{body}\n}}\n")
        assert errors == []
        output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        return dict(zip(expressions, map(int, output.split()), strict=True))

    return evaluate


# -- constants and structures -------------------------------------------------------------------


def c_spelling(name):
    """The header's name of one of our constants."""
    if name in CONSTANTS:
        return CONSTANTS[name]
    for prefix, replacement in PREFIXES.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    raise AssertionError(f"abi.{name}: add its C name to this test")


def test_constants(c_values):
    ours = {n: v for n, v in vars(abi).items() if n.isupper() and isinstance(v, int)}
    assert len(ours) > 30
    theirs = c_values([c_spelling(name) for name in ours])
    assert ours == {name: theirs[c_spelling(name)] for name in ours}


def camel_case(name):
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def c_member(structure, name):
    """The header's name of one field of our structures."""
    return MEMBERS.get(structure, {}).get(name) or camel_case(name)


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_structure_layout(structure, c_values):
    c_name = STRUCTURES[structure]
    ours = {f"sizeof({c_name})": ctypes.sizeof(structure)}
    ours[f"_Alignof({c_name})"] = ctypes.alignment(structure)
    for name, _ in structure._fields_:
        field, member = getattr(structure, name), c_member(structure, name)
        ours[f"offsetof({c_name}, {member})"] = field.offset
        ours[f"sizeof((({c_name} *)0)->{member})"] = field.size
    assert c_values(list(ours)) == ours


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_structure_field_types(structure, compile_c):
    lines = []
    for name, ctype in structure._fields_:
        member = f"(({STRUCTURES[structure]} *)0)->{c_member(structure, name)}"
        lines += [assertion(test, f"{name}: {words}") for test, words in demands(member, ctype)]
    assert compile_c("\n".join([*lines, MAIN]))[1] == []


# -- prototypes ---------------------------------------------------------------------------------


def assertion(condition, text):
    return f'_Static_assert({condition}, "{text}");'


def demands(expression, ctype):
    """List what makes the C expression's type the same to a call as the ctypes type.

    Integers: kind, size and sign; an enumeration of any sign may stand for ``c_int``. Pointers:
    kind, and the same of what they point to; ``c_void_p`` stands for every pointer. Structures:
    the very type.
    """
    pointer = (f"KIND({expression}) == KIND((void *)0)", "is a pointer")
    if ctype in STRUCTURES:
        return [(f"IS({expression}, {STRUCTURES[ctype]})", f"is a {STRUCTURES[ctype]}")]
    if ctype is ctypes.c_void_p:
        return [pointer]
    pointed = f"(*({expression}))"
    if ctype is ctypes.c_char_p:
        return [pointer, (f"IS({pointed}, char) || IS({pointed}, const char)", "is a string")]
    if issubclass(ctype, ctypes._Pointer):
        return [pointer, *demands(pointed, ctype._type_)]
    size, unsigned = ctypes.sizeof(ctype), ctype(-1).value > 0
    sign = f"((__typeof__({expression}))-1 > 0) == {int(unsigned)}"
    if ctype is ctypes.c_int:
        sign = f"IS_ENUM({expression}) || {sign}"
    return [
        (f"KIND({expression}) == KIND(0)", "is an integer"),
        (f"sizeof({expression}) == {size}", f"has {size} bytes"),
        (sign, "is unsigned" if unsigned else "is signed or an enumeration"),
    ]


def test_prototypes(headers, compile_c):
    """Every prototype is the ``PFN_<name>_v<version>`` of its name and requested version.

    The parameters are read from the header's text. That they were read right, and all of them,
    the compiler proves: a function with just these must have the header's type.
    """
    text = (headers / "cudaTypedefs.h").read_text()
    lines = []
    for prototype in PROTOTYPES:
        pfn = f"PFN_{prototype.name.removesuffix('_v2')}_v{prototype.version}"
        found = re.search(rf"typedef CUresult \(CUDAAPI \*{pfn}\)\(([^)]*)\);", text)
        assert found, f"{pfn}: no such type, so the name or the version is wrong"
        parameters = found[1].split(",")
        assert len(parameters) == len(prototype.argtypes), f"{pfn}: {found[1]}"
        lines.append(f"static CUresult our_{pfn}({found[1]}) {{")
        for parameter, ctype in zip(parameters, prototype.argtypes, strict=True):
            name = re.search(r"\w+$", parameter)[0]
            lines += [
                assertion(test, f"{pfn}: {parameter.strip()}: {words}")
                for test, words in demands(name, ctype)
            ]
        lines.append("return CUDA_SUCCESS; }")
        lines.append(assertion(f"IS(&our_{pfn}, {pfn})", f"{pfn}: its parameters were misread"))
    assert compile_c("\n".join([*lines, MAIN]))[1] == []


def test_return_type_is_an_int(compile_c):
    tests = [("IS_ENUM((CUresult)0)", "is an enumeration"), ("sizeof(CUresult) == 4", "of 4 bytes")]
    assert compile_c("\n".join([assertion(*test) for test in tests] + [MAIN]))[1] == []


def test_batch_columns_are_64_bit_words(compile_c):
    """The destinations, sources and sizes of a batch are passed as arrays of 64-bit words."""
    lines = [
        assertion(f"sizeof({name}) == 8 && ({name})-1 > 0", f"{name} is an unsigned 64-bit word")
        for name in ("CUdeviceptr", "size_t")
    ]
    assert compile_c("\n".join([*lines, MAIN]))[1] == []
