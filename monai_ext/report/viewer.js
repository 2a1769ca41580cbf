// Two linked NiiVue canvases: which image each one shows is chosen above it, the crosshair is one for both.
(async () => {
  const section = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const status = section.querySelector("[role=status]");
  const chooser = section.querySelector("#case");
  const panes = [...section.querySelectorAll(".pane")].map((element) => ({
    element,
    image: element.querySelector("select"),
    canvas: element.querySelector("canvas"),
    value: element.querySelector("output"),
    shown: element.querySelector(".shown"),
  }));

  if (!document.createElement("canvas").getContext("webgl2")) {
    status.textContent = "This browser has no WebGL 2, which the viewer needs. The pictures above show the same cases.";
    section.dataset.state = "unsupported";
    return;
  }

  const format = (value) => (Number.isFinite(value) ? value.toFixed(3) : "");
  const present = () => data.cases[Number(chooser.value)];

  async function show(pane) {
    const { kind, text, nifti } = present().images[Number(pane.image.value)];
    const volume = await niivue.NVImage.loadFromBase64({
      base64: nifti,
      name: text + ".nii.gz",
      colormap: kind === "error" ? "error" : "gray",
      cal_min: 0,
      cal_max: kind === "error" ? data.errorTop : 1,
    });
    const where = pane.viewer.volumes.length ? pane.viewer.scene.crosshairPos.slice() : null;
    while (pane.viewer.volumes.length) pane.viewer.removeVolume(pane.viewer.volumes[0]);
    pane.viewer.addVolume(volume);
    if (where) pane.viewer.scene.crosshairPos = where;
    pane.viewer.updateGLVolume();
    pane.viewer.createOnLocationChange();
    pane.shown.textContent = text;
    pane.canvas.setAttribute("aria-label", `${text}: axial, coronal and sagittal slices through the crosshair`);
  }

  function list() {
    for (const [number, pane] of panes.entries()) {
      const images = present().images;
      pane.image.replaceChildren(...images.map(({ text }, index) => new Option(text, index)));
      const wanted = number === 0 ? "truth" : "synthetic";
      pane.image.value = Math.max(0, images.findIndex(({ kind }) => kind === wanted));
    }
  }

  try {
    for (const pane of panes) {
      pane.viewer = new niivue.Niivue({
        backColor: [0, 0, 0, 1],
        crosshairColor: [0.95, 0.75, 0.2, 0.9],
        crosshairWidth: 0.5,
        crosshairGap: 6,
        dragAndDropEnabled: false,
        loadingText: "",
        logLevel: "silent",
        isRadiologicalConvention: true,
        sagittalNoseLeft: true,
        multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
      });
      await pane.viewer.attachToCanvas(pane.canvas);
      pane.viewer.addColormap("error", data.errorColours);
      pane.viewer.setSliceType(pane.viewer.sliceTypeMultiplanar);
      // the wheel goes through slices only once a canvas was clicked: until then it scrolls the page
      pane.element.addEventListener("wheel", (event) => {
        if (document.activeElement !== pane.canvas) event.stopImmediatePropagation();
      }, { capture: true });
      pane.viewer.onLocationChange = ({ values }) => {
        pane.value.textContent = values.length ? format(values[0].value) : "";
      };
    }
    panes.forEach((pane, number) => pane.viewer.broadcastTo([panes[1 - number].viewer], { "2d": true, "3d": true }));
    list();
    for (const pane of panes) await show(pane);

    chooser.addEventListener("change", async () => {
      list();
      for (const pane of panes) await show(pane);
    });
    for (const pane of panes) pane.image.addEventListener("change", () => show(pane));
    const planes = section.querySelector("#planes");
    planes.addEventListener("change", () => {
      for (const { viewer } of panes) viewer.setSliceType(viewer[planes.value]);
    });
    status.textContent = "";
    section.dataset.state = "ready";
  } catch (error) {
    status.textContent = `The viewer did not start: ${error.message}`;
    section.dataset.state = "failed";
    throw error;
  }
})();
