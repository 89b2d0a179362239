/* Detect objects in a picture, in plain C: an .onnx or .xml file of `qmimic export`, by OpenVINO's C interface.
 *
 *     detect student-int8.xml picture.ppm 0.4
 *
 * prints a line for each object: class index, score, x1 y1 x2 y2 in pixels. The picture is a binary PPM that is no larger
 * than the network's input; what it does not cover is filled with the mean colour, as in training. How larger pictures
 * are made to fit is told in docs/shipping.md.
 *
 *     cc detect.c -o detect -I"$OV/include" "$OV"/libs/libopenvino_c.so* -Wl,-rpath,"$OV/libs"
 *
 * where OV is the folder that `python -c "import openvino; print(openvino.__path__[0])"` prints.
 */
#include <openvino/c/openvino.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint8_t MEAN_COLOUR[3] = {124, 116, 104};

static void fail(const char *what, const char *name) {
    fprintf(stderr, "detect: %s %s\n", what, name);
    exit(2);
}

static void must(ov_status_e status, const char *what) {
    if (status != OK) fail(what, ov_get_error_info(status));
}

/* Put a picture into the upper left corner of pixels [height][width][3]. */
static void read_picture(const char *name, uint8_t *pixels, int height, int width) {
    FILE *file = fopen(name, "rb");
    int own_width, own_height, most;
    if (!file) fail("cannot open", name);
    if (fscanf(file, "P6 %d %d %d", &own_width, &own_height, &most) != 3 || most != 255 || fgetc(file) == EOF)
        fail("is no binary PPM of 8 bits a colour:", name);
    if (own_width < 1 || own_height < 1 || own_width > width || own_height > height)
        fail("is larger than the network's input:", name);
    for (int i = 0; i < height * width; i++) memcpy(pixels + 3 * i, MEAN_COLOUR, 3);
    for (int row = 0; row < own_height; row++)
        if (fread(pixels + 3 * (size_t)row * width, 3, own_width, file) != (size_t)own_width)
            fail("ends too early:", name);
    fclose(file);
}

int main(int count, char **arguments) {
    if (count != 4) fail("usage:", "detect MODEL PICTURE.ppm MIN_SCORE");
    float min_score = strtof(arguments[3], NULL);

    ov_core_t *core;
    ov_compiled_model_t *model;
    ov_output_const_port_t *port;
    ov_infer_request_t *request;
    ov_shape_t shape;
    must(ov_core_create(&core), "cannot start OpenVINO:");
    /* As it was proved: on some processors OpenVINO would compute in 16 bits else. */
    must(ov_core_compile_model_from_file(core, arguments[1], "CPU", 4, &model, "INFERENCE_NUM_THREADS", "1",
                                         "INFERENCE_PRECISION_HINT", "f32"),
         "cannot load the model:");
    must(ov_compiled_model_input(model, &port), "cannot find the input:");
    must(ov_const_port_get_shape(port, &shape), "cannot read the input's shape:");
    if (shape.rank != 4 || shape.dims[0] != 1) fail("takes other than one picture at a time:", arguments[1]);
    must(ov_compiled_model_create_infer_request(model, &request), "cannot start:");

    ov_tensor_t *images, *boxes, *scores, *labels;
    void *pixels, *box, *score, *label;
    must(ov_tensor_create(U8, shape, &images), "cannot make the input:"); /* [1, height, width, 3], RGB */
    must(ov_tensor_data(images, &pixels), "cannot make the input:");
    read_picture(arguments[2], pixels, (int)shape.dims[1], (int)shape.dims[2]);
    must(ov_infer_request_set_tensor(request, "images", images), "cannot give the input:");
    must(ov_infer_request_infer(request), "cannot run:");

    size_t most;
    must(ov_infer_request_get_tensor(request, "boxes", &boxes), "cannot read the boxes:");   /* float [1, D, 4] */
    must(ov_infer_request_get_tensor(request, "scores", &scores), "cannot read the scores:"); /* float [1, D], falling */
    must(ov_infer_request_get_tensor(request, "labels", &labels), "cannot read the labels:"); /* int64 [1, D] */
    must(ov_tensor_data(boxes, &box), "cannot read the boxes:");
    must(ov_tensor_data(scores, &score), "cannot read the scores:");
    must(ov_tensor_data(labels, &label), "cannot read the labels:");
    must(ov_tensor_get_size(scores, &most), "cannot read the scores:");
    for (size_t i = 0; i < most && ((float *)score)[i] >= min_score && ((float *)score)[i] >= 0; i++) {
        const float *own = (const float *)box + 4 * i;
        printf("%lld %.4f %.2f %.2f %.2f %.2f\n", (long long)((int64_t *)label)[i], ((float *)score)[i], own[0], own[1],
               own[2], own[3]);
    }

    ov_tensor_free(labels);
    ov_tensor_free(scores);
    ov_tensor_free(boxes);
    ov_tensor_free(images);
    ov_shape_free(&shape);
    ov_infer_request_free(request);
    ov_output_const_port_free(port);
    ov_compiled_model_free(model);
    ov_core_free(core);
    return 0;
}
