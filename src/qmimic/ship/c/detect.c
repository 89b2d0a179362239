/* From a camera's pixels to a detector's input, and from its outputs to detections, in integers alone.
 *
 * Sizes, labels, thresholds and tables stand in the header beside this file. Boxes are in sixteenths of a pixel of the
 * network's input; no memory is taken but what the caller gives and the arrays below. Not for two threads at once.
 */

#include "NAME.h"

#define CLASSES NAME_UPPER_CLASSES
#define PLACES NAME_UPPER_PLACES
#define CANDIDATES NAME_UPPER_CANDIDATES
#define OUTPUTS (CLASSES + 4)

typedef struct {
    int32_t place;
    int32_t label;
} candidate;

static candidate candidates[CANDIDATES];
static uint8_t suppressed[CANDIDATES];
static uint8_t rows[NAME_UPPER_ROWS_BYTES];

static uint8_t weighed(const uint8_t *pixels, int step, int first, int count, const int32_t *weights)
{
    int32_t sum = 1 << 21; /* a half: weights have 22 bits behind the point */
    for (int n = 0; n < count; n++)
        sum += weights[n] * pixels[(first + n) * step];
    sum >>= 22;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

void NAME_input(const uint8_t *rgb, int8_t *input)
{
    const int width = NAME_UPPER_CAMERA_WIDTH, inner_width = NAME_UPPER_INNER_WIDTH;
    const int inner_height = NAME_UPPER_INNER_HEIGHT;
    for (int x = 0; x < NAME_UPPER_WIDTH * NAME_UPPER_HEIGHT; x++)
        for (int c = 0; c < 3; c++)
            input[3 * x + c] = (int8_t)(NAME_fill[c] - 128);
    /* The rows that one output row needs are scaled across, then weighed down. */
    int held = 0; /* rows [held - NAME_UPPER_ROWS, held) of the picture are in `rows`, each at its number modulo */
    for (int y = 0; y < inner_height; y++) {
        const int first = NAME_down_first[y], count = NAME_down_count[y];
        for (; held < first + count; held++)
            for (int x = 0; x < inner_width; x++)
                for (int c = 0; c < 3; c++)
                    rows[((held % NAME_UPPER_ROWS) * inner_width + x) * 3 + c] =
                        weighed(rgb + (long)held * width * 3 + c, 3, NAME_across_first[x], NAME_across_count[x],
                                NAME_across + x * NAME_UPPER_ACROSS_TAPS);
        for (int x = 0; x < inner_width; x++)
            for (int c = 0; c < 3; c++) {
                uint8_t column[NAME_UPPER_ROWS];
                for (int n = 0; n < count; n++)
                    column[n] = rows[(((first + n) % NAME_UPPER_ROWS) * inner_width + x) * 3 + c];
                input[(y * NAME_UPPER_WIDTH + x) * 3 + c] =
                    (int8_t)(weighed(column, 1, 0, count, NAME_down + y * NAME_UPPER_DOWN_TAPS) - 128);
            }
    }
}

static int32_t limited(int32_t value, int32_t most) { return value < 0 ? 0 : value > most ? most : value; }

/* Corners of a place's box, clipped to the input. */
static void box_of(const int8_t *places, int place, int32_t corners[4])
{
    const int8_t *sides = places + (long)place * OUTPUTS + CLASSES;
    int level = 0, first = 0;
    while (place - first >= NAME_level_places[level])
        first += NAME_level_places[level++];
    const int stride = NAME_level_stride[level], columns = NAME_UPPER_WIDTH / stride, within = place - first;
    const int32_t x = (2 * (within % columns) + 1) * stride * 8, y = (2 * (within / columns) + 1) * stride * 8;
    const int32_t *distance = NAME_distance + 256 * level + 128;
    corners[0] = limited(x - distance[sides[0]], NAME_UPPER_WIDTH * 16);
    corners[1] = limited(y - distance[sides[1]], NAME_UPPER_HEIGHT * 16);
    corners[2] = limited(x + distance[sides[2]], NAME_UPPER_WIDTH * 16);
    corners[3] = limited(y + distance[sides[3]], NAME_UPPER_HEIGHT * 16);
}

static int is_empty(const int32_t corners[4]) { return corners[2] <= corners[0] || corners[3] <= corners[1]; }

static int overlaps(const int32_t a[4], const int32_t b[4])
{
    const int64_t width = (a[2] < b[2] ? a[2] : b[2]) - (a[0] > b[0] ? a[0] : b[0]);
    const int64_t height = (a[3] < b[3] ? a[3] : b[3]) - (a[1] > b[1] ? a[1] : b[1]);
    if (width <= 0 || height <= 0)
        return 0;
    const int64_t areas = (int64_t)(a[2] - a[0]) * (a[3] - a[1]) + (int64_t)(b[2] - b[0]) * (b[3] - b[1]);
    return width * height * (65536 + NAME_UPPER_NMS_THRESHOLD) > areas * NAME_UPPER_NMS_THRESHOLD;
}

/* The candidates in falling order of score; those of equal score by place, then by label. */
static int collect(const int8_t *places)
{
    int32_t counts[256] = {0}, corners[4];
    for (int place = 0; place < PLACES; place++) {
        box_of(places, place, corners);
        if (is_empty(corners))
            continue;
        for (int label = 0; label < CLASSES; label++)
            counts[places[(long)place * OUTPUTS + label] + 128]++;
    }
    int32_t next[256], total = 0;
    for (int level = 255; level >= 0; level--) {
        next[level] = total;
        if (level - 128 > NAME_UPPER_LEAST_OUTPUT)
            total += counts[level];
    }
    for (int place = 0; place < PLACES; place++) {
        box_of(places, place, corners);
        if (is_empty(corners))
            continue;
        for (int label = 0; label < CLASSES; label++) {
            const int output = places[(long)place * OUTPUTS + label];
            if (output > NAME_UPPER_LEAST_OUTPUT && next[output + 128] < CANDIDATES)
                candidates[next[output + 128]++] = (candidate){place, label};
        }
    }
    return total < CANDIDATES ? total : CANDIDATES;
}

int NAME_detect(const int8_t *places, NAME_detection *found)
{
    const int count = collect(places);
    int kept = 0;
    for (int n = 0; n < count; n++)
        suppressed[n] = 0;
    for (int n = 0; n < count && kept < NAME_UPPER_MOST; n++) {
        if (suppressed[n])
            continue;
        NAME_detection *own = &found[kept++];
        int32_t other[4];
        box_of(places, candidates[n].place, own->corners);
        own->label = candidates[n].label;
        own->score = NAME_score[places[(long)candidates[n].place * OUTPUTS + candidates[n].label] + 128];
        for (int k = n + 1; k < count; k++)
            if (!suppressed[k] && candidates[k].label == own->label) {
                box_of(places, candidates[k].place, other);
                suppressed[k] = (uint8_t)overlaps(own->corners, other);
            }
    }
    return kept;
}
