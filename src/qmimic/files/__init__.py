"""The only door to the disk: `reading` is the way in, `writing` the way out."""

from qmimic.files.reading import (
    LARGE as LARGE,
)
from qmimic.files.reading import (
    MIB as MIB,
)
from qmimic.files.reading import (
    OTHER_KIND as OTHER_KIND,
)
from qmimic.files.reading import (
    SMALL as SMALL,
)
from qmimic.files.reading import (
    MissingError as MissingError,
)
from qmimic.files.reading import (
    check_depth as check_depth,
)
from qmimic.files.reading import (
    inside as inside,
)
from qmimic.files.reading import (
    is_there as is_there,
)
from qmimic.files.reading import (
    open_file as open_file,
)
from qmimic.files.reading import (
    parse_json as parse_json,
)
from qmimic.files.reading import (
    read_bytes as read_bytes,
)
from qmimic.files.reading import (
    read_json as read_json,
)
from qmimic.files.reading import (
    read_text as read_text,
)
from qmimic.files.reading import (
    what_is as what_is,
)
from qmimic.files.writing import (
    append_text as append_text,
)
from qmimic.files.writing import (
    appending as appending,
)
from qmimic.files.writing import (
    building as building,
)
from qmimic.files.writing import (
    check_one_name as check_one_name,
)
from qmimic.files.writing import (
    check_writable as check_writable,
)
from qmimic.files.writing import (
    own_folder as own_folder,
)
from qmimic.files.writing import (
    own_handle as own_handle,
)
from qmimic.files.writing import (
    refuse_links as refuse_links,
)
from qmimic.files.writing import (
    replacing as replacing,
)
from qmimic.files.writing import (
    write_text as write_text,
)
