/* Detect objects in a camera's picture, in plain C: the C source of `qmimic export --int8 --to litert --c 320x240`, by
 * LiteRT's C interface. On a microcontroller TensorFlow Lite Micro takes LiteRT's place, and the rest stays as it is.
 *
 *     detect_litert picture.ppm 0.4
 *
 * prints a line for each object: label, score, x1 y1 x2 y2 in pixels of the picture, which is a binary PPM of the
 * camera's size. In the folder that has the exported files:
 *
 *     cc -I. detect_litert.c student_int8_data.c student_int8_detect.c -o detect_litert "$LITERT/libLiteRt.so" \
 *         -Wl,-rpath,"$LITERT"
 *
 * where LITERT is the folder that `python -c "import ai_edge_litert as l; print(l.__path__[0])"` prints. That wheel (2.3)
 * has the library and no headers, so what is used of them is declared below.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "student_int8.h"

/* Of litert/c/litert_*.h, version 2. */
typedef struct LiteRtEnvironmentT *LiteRtEnvironment;
typedef struct LiteRtModelT *LiteRtModel;
typedef struct LiteRtOptionsT *LiteRtOptions;
typedef struct LiteRtSignatureT *LiteRtSignature;
typedef struct LiteRtTensorT *LiteRtTensor;
typedef struct LiteRtCompiledModelT *LiteRtCompiledModel;
typedef struct LiteRtTensorBufferT *LiteRtTensorBuffer;
typedef struct LiteRtTensorBufferRequirementsT *LiteRtTensorBufferRequirements;
typedef struct { _Alignas(16) unsigned char own[512]; } LiteRtRankedTensorType; /* larger than it is; only passed on */
enum { CPU = 1, FOR_READING = 0, FOR_WRITING = 1 };

int LiteRtCreateEnvironment(int count, const void *options, LiteRtEnvironment *environment);
int LiteRtCreateModelFromBuffer(LiteRtEnvironment environment, const void *content, size_t size, LiteRtModel *model);
int LiteRtCreateOptions(LiteRtOptions *options);
int LiteRtSetOptionsHardwareAccelerators(LiteRtOptions options, int accelerators);
int LiteRtCreateCompiledModel(LiteRtEnvironment environment, LiteRtModel model, LiteRtOptions options,
                              LiteRtCompiledModel *compiled);
int LiteRtGetModelSignature(LiteRtModel model, size_t index, LiteRtSignature *signature);
int LiteRtGetSignatureInputTensorByIndex(LiteRtSignature signature, size_t index, LiteRtTensor *tensor);
int LiteRtGetSignatureOutputTensorByIndex(LiteRtSignature signature, size_t index, LiteRtTensor *tensor);
int LiteRtGetRankedTensorType(LiteRtTensor tensor, LiteRtRankedTensorType *type);
int LiteRtGetCompiledModelInputBufferRequirements(LiteRtCompiledModel compiled, size_t signature, size_t index,
                                                  LiteRtTensorBufferRequirements *requirements);
int LiteRtGetCompiledModelOutputBufferRequirements(LiteRtCompiledModel compiled, size_t signature, size_t index,
                                                   LiteRtTensorBufferRequirements *requirements);
int LiteRtCreateManagedTensorBufferFromRequirements(LiteRtEnvironment environment, const LiteRtRankedTensorType *type,
                                                    LiteRtTensorBufferRequirements requirements,
                                                    LiteRtTensorBuffer *buffer);
int LiteRtGetTensorBufferPackedSize(LiteRtTensorBuffer buffer, size_t *size);
int LiteRtLockTensorBuffer(LiteRtTensorBuffer buffer, void **memory, int mode);
int LiteRtUnlockTensorBuffer(LiteRtTensorBuffer buffer);
int LiteRtRunCompiledModel(LiteRtCompiledModel compiled, size_t signature, size_t input_count,
                           LiteRtTensorBuffer *inputs, size_t output_count, LiteRtTensorBuffer *outputs);
void LiteRtDestroyTensorBuffer(LiteRtTensorBuffer buffer);
void LiteRtDestroyCompiledModel(LiteRtCompiledModel compiled);
void LiteRtDestroyOptions(LiteRtOptions options);
void LiteRtDestroyModel(LiteRtModel model);
void LiteRtDestroyEnvironment(LiteRtEnvironment environment);

static uint8_t picture[STUDENT_INT8_CAMERA_HEIGHT * STUDENT_INT8_CAMERA_WIDTH * 3];
static student_int8_detection found[STUDENT_INT8_MOST];

static void fail(const char *what, const char *name) {
    fprintf(stderr, "detect_litert: %s %s\n", what, name);
    exit(2);
}

static void must(int status, const char *what) {
    if (status) fail("LiteRT cannot", what);
}

static void read_picture(const char *name) {
    FILE *file = fopen(name, "rb");
    int width, height, most;
    if (!file) fail("cannot open", name);
    if (fscanf(file, "P6 %d %d %d", &width, &height, &most) != 3 || most != 255 || fgetc(file) == EOF)
        fail("is no binary PPM of 8 bits a colour:", name);
    if (width != STUDENT_INT8_CAMERA_WIDTH || height != STUDENT_INT8_CAMERA_HEIGHT)
        fail("is not of the camera's size:", name);
    if (fread(picture, 1, sizeof picture, file) != sizeof picture) fail("ends too early:", name);
    fclose(file);
}

/* A buffer for the one input or the one output, of as many bytes as the header says. */
static LiteRtTensorBuffer buffer_of(LiteRtEnvironment environment, LiteRtTensor tensor,
                                    LiteRtTensorBufferRequirements requirements, size_t wanted) {
    LiteRtRankedTensorType type;
    LiteRtTensorBuffer buffer;
    size_t size;
    must(LiteRtGetRankedTensorType(tensor, &type), "tell the shape of a tensor");
    must(LiteRtCreateManagedTensorBufferFromRequirements(environment, &type, requirements, &buffer), "make a buffer");
    must(LiteRtGetTensorBufferPackedSize(buffer, &size), "tell the size of a buffer");
    if (size != wanted) fail("the header is not of this model:", "student_int8.h");
    return buffer;
}

int main(int count, char **arguments) {
    if (count != 3) fail("usage:", "detect_litert PICTURE.ppm MIN_SCORE");
    float min_score = strtof(arguments[2], NULL);
    read_picture(arguments[1]);

    LiteRtEnvironment environment;
    LiteRtModel model;
    LiteRtOptions options;
    LiteRtCompiledModel compiled;
    LiteRtSignature signature;
    LiteRtTensor tensor;
    LiteRtTensorBufferRequirements requirements;
    LiteRtTensorBuffer input, output;
    must(LiteRtCreateEnvironment(0, NULL, &environment), "start");
    must(LiteRtCreateModelFromBuffer(environment, student_int8_model, sizeof student_int8_model, &model), "load it");
    must(LiteRtCreateOptions(&options), "make options");
    must(LiteRtSetOptionsHardwareAccelerators(options, CPU), "take the CPU");
    must(LiteRtCreateCompiledModel(environment, model, options, &compiled), "compile the model");
    must(LiteRtGetModelSignature(model, 0, &signature), "find the model's signature");
    must(LiteRtGetSignatureInputTensorByIndex(signature, 0, &tensor), "find the input");
    must(LiteRtGetCompiledModelInputBufferRequirements(compiled, 0, 0, &requirements), "tell what the input needs");
    input = buffer_of(environment, tensor, requirements, STUDENT_INT8_WIDTH * STUDENT_INT8_HEIGHT * 3);
    must(LiteRtGetSignatureOutputTensorByIndex(signature, 0, &tensor), "find the output");
    must(LiteRtGetCompiledModelOutputBufferRequirements(compiled, 0, 0, &requirements), "tell what the output needs");
    output = buffer_of(environment, tensor, requirements, STUDENT_INT8_PLACES * (STUDENT_INT8_CLASSES + 4));

    void *memory;
    must(LiteRtLockTensorBuffer(input, &memory, FOR_WRITING), "give its input");
    student_int8_input(picture, memory);
    must(LiteRtUnlockTensorBuffer(input), "take its input");
    must(LiteRtRunCompiledModel(compiled, 0, 1, &input, 1, &output), "run the model");
    must(LiteRtLockTensorBuffer(output, &memory, FOR_READING), "give its output");
    int kept = student_int8_detect(memory, found);
    must(LiteRtUnlockTensorBuffer(output), "take its output");

    /* Boxes are in sixteenths of a pixel of the input. */
    const double across = (double)STUDENT_INT8_CAMERA_WIDTH / STUDENT_INT8_INNER_WIDTH / 16;
    const double down = (double)STUDENT_INT8_CAMERA_HEIGHT / STUDENT_INT8_INNER_HEIGHT / 16;
    for (int n = 0; n < kept; n++) {
        const int32_t *box = found[n].corners;
        double score = found[n].score / 65535.0;
        if (score >= min_score)
            printf("%s %.4f %.2f %.2f %.2f %.2f\n", student_int8_labels[found[n].label], score, box[0] * across,
                   box[1] * down, box[2] * across, box[3] * down);
    }

    LiteRtDestroyTensorBuffer(output);
    LiteRtDestroyTensorBuffer(input);
    LiteRtDestroyCompiledModel(compiled);
    LiteRtDestroyOptions(options);
    LiteRtDestroyModel(model);
    LiteRtDestroyEnvironment(environment);
    return 0;
}
