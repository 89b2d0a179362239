// Detect objects in a picture, in C++: the files of `qmimic export --to ncnn`, by ncnn.
//
//     detect_ncnn student.ncnn.param picture.ppm 0.4 0.5
//
// prints a line for each object: class index, score, x1 y1 x2 y2 in pixels. The last number is the IoU above which the
// weaker of two objects is left out (nms_threshold of the file's .json). The picture is a binary PPM that is no larger
// than the network's input; what it does not cover is filled with the mean colour, as in training. How larger pictures
// are made to fit is told in docs/shipping.md.
//
//     c++ -std=c++17 detect_ncnn.cpp -o detect_ncnn $(pkg-config --cflags --libs ncnn) -fopenmp
//
// with the library of Debian's libncnn-dev (from trixie on), or one built from source.
#include <net.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

namespace {

constexpr unsigned char MEAN_COLOUR[3] = {124, 116, 104};
constexpr size_t MAX_DETECTIONS = 100;

struct Object {
    int label;
    float score, x1, y1, x2, y2;
    float area() const { return (x2 - x1) * (y2 - y1); }
};

[[noreturn]] void fail(const char *what, const std::string &name) {
    std::fprintf(stderr, "detect_ncnn: %s %s\n", what, name.c_str());
    std::exit(2);
}

// Pixels [height][width][3] with a picture in the upper left corner.
std::vector<unsigned char> read_picture(const std::string &name, int height, int width) {
    std::FILE *file = std::fopen(name.c_str(), "rb");
    int own_width, own_height, most;
    if (!file) fail("cannot open", name);
    if (std::fscanf(file, "P6 %d %d %d", &own_width, &own_height, &most) != 3 || most != 255 || std::fgetc(file) == EOF)
        fail("is no binary PPM of 8 bits a colour:", name);
    if (own_width < 1 || own_height < 1 || own_width > width || own_height > height)
        fail("is larger than the network's input:", name);
    std::vector<unsigned char> pixels(3 * static_cast<size_t>(height) * width);
    for (size_t i = 0; i < pixels.size(); i++) pixels[i] = MEAN_COLOUR[i % 3];
    for (int row = 0; row < own_height; row++)
        if (std::fread(&pixels[3 * static_cast<size_t>(row) * width], 3, own_width, file) != static_cast<size_t>(own_width))
            fail("ends too early:", name);
    std::fclose(file);
    return pixels;
}

// The size of the input: it stands in the first layer's line, the third of the file.
void read_size(const std::string &param, int *width, int *height) {
    std::ifstream file(param);
    std::string line;
    for (int number = 0; number < 3; number++) std::getline(file, line);
    size_t sides = line.find(" 0=");
    if (sides == std::string::npos || std::sscanf(line.c_str() + sides, " 0=%d 1=%d", width, height) != 2)
        fail("does not say how large its input is:", param);
}

float overlap(const Object &a, const Object &b) {
    float width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1);
    float height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
    float both = std::max(0.0f, width) * std::max(0.0f, height);
    return both / (a.area() + b.area() - both);
}

// The best first; of two of a class that overlap, the better one.
std::vector<Object> suppress(std::vector<Object> found, float threshold) {
    std::stable_sort(found.begin(), found.end(), [](const Object &a, const Object &b) { return a.score > b.score; });
    std::vector<Object> kept;
    for (const Object &one : found) {
        bool beaten = std::any_of(kept.begin(), kept.end(), [&](const Object &better) {
            return better.label == one.label && overlap(better, one) > threshold;
        });
        if (!beaten && kept.size() < MAX_DETECTIONS) kept.push_back(one);
    }
    return kept;
}

}  // namespace

int main(int count, char **arguments) {
    if (count != 5) fail("usage:", "detect_ncnn MODEL.ncnn.param PICTURE.ppm MIN_SCORE MAX_IOU");
    std::string param = arguments[1], ending = ".param";
    if (param.size() < ending.size() || param.compare(param.size() - ending.size(), ending.size(), ending))
        fail("is no .param file:", param);
    std::string weights = param.substr(0, param.size() - ending.size()) + ".bin";
    float min_score = std::strtof(arguments[3], nullptr), max_iou = std::strtof(arguments[4], nullptr);

    ncnn::Net net;
    net.opt.num_threads = 1;
    net.opt.use_vulkan_compute = false;
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = false;  // as it was proved
    if (net.load_param(param.c_str())) fail("cannot load the layers:", param);
    if (net.load_model(weights.c_str())) fail("cannot load the weights:", weights);

    int width, height;
    read_size(param, &width, &height);
    std::vector<unsigned char> pixels = read_picture(arguments[2], height, width);
    ncnn::Extractor extractor = net.create_extractor();
    extractor.input("images", ncnn::Mat::from_pixels(pixels.data(), ncnn::Mat::PIXEL_RGB, width, height));
    ncnn::Mat boxes, scores;  // rows: places; columns: x1 y1 x2 y2, and classes
    if (extractor.extract("region_boxes", boxes) || extractor.extract("region_scores", scores))
        fail("cannot run:", param);

    std::vector<Object> found;
    for (int place = 0; place < scores.h; place++) {
        const float *box = boxes.row(place), *score = scores.row(place);
        for (int label = 0; label < scores.w; label++) {
            if (score[label] < min_score) continue;
            Object one = {label, score[label], std::clamp(box[0], 0.0f, float(width)),
                          std::clamp(box[1], 0.0f, float(height)), std::clamp(box[2], 0.0f, float(width)),
                          std::clamp(box[3], 0.0f, float(height))};
            if (one.x2 - one.x1 > 1e-2f && one.y2 - one.y1 > 1e-2f) found.push_back(one);
        }
    }
    for (const Object &one : suppress(std::move(found), max_iou))
        std::printf("%d %.4f %.2f %.2f %.2f %.2f\n", one.label, one.score, one.x1, one.y1, one.x2, one.y2);
}
