// Frames of a camera, one after another; the next is taken when the last one has been processed.

const WIDTH = 640;
const QUALITY = 0.9;

function reason(error) {
  if (error.name === "NotAllowedError") return "Access to the camera was refused; allow it in the browser's address bar and start it again.";
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return "No camera was found; connect one.";
  if (error.name === "NotReadableError") return "Another program is using the camera; close it and start again.";
  return `The camera cannot be started (${error.name}); try another browser.`;
}

export class Camera {
  #stream = null;

  get running() {
    return this.#stream !== null;
  }

  // take({blob, image, width, height}) is awaited before the next frame; ended(sentence or "") is called at the end.
  async start(take, ended) {
    if (!navigator.mediaDevices?.getUserMedia) {
      ended("The browser allows no camera at this address; open the page as http://localhost, or over https.");
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: WIDTH }, facingMode: "environment" } });
    } catch (error) {
      ended(reason(error));
      return;
    }
    this.#stream = stream;
    const video = document.createElement("video");
    Object.assign(video, { muted: true, playsInline: true, srcObject: stream });
    let said = "";
    stream.getVideoTracks()[0].addEventListener("ended", () => {
      said = "The camera was disconnected; connect it and start again.";
      this.stop();
    });
    try {
      await video.play();
      while (this.#stream === stream) {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
        canvas.getContext("2d").drawImage(video, 0, 0);
        const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
        await take({ blob, image: canvas, width: canvas.width, height: canvas.height });
        await new Promise(requestAnimationFrame);
      }
    } catch (error) {
      said = error.message;
    } finally {
      if (this.#stream === stream) this.stop();
      video.srcObject = null;
      ended(said);
    }
  }

  stop() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = null;
  }
}
