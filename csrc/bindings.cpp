// The streams as Python sees them. Calls that compute or may wait release the GIL.
#include "bindings.h"

#include <ATen/core/Tensor.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "hubert_stream.h"
#include "vocoder_stream.h"

namespace py = pybind11;

namespace spiritrt {

namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

Norm parse_norm(const std::string& name) {
  if (name == "window") return Norm::window;
  if (name == "running") return Norm::running;
  TORCH_CHECK_VALUE(name == "calibrated", "norm must be 'window', 'running' or 'calibrated', got '", name, "'");
  return Norm::calibrated;
}

}  // namespace

// TORCH_CHECK_VALUE is a ValueError and TORCH_CHECK a RuntimeError, with the message alone.
void bind_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::ValueError& bad) {
      py::set_error(PyExc_ValueError, bad.what_without_backtrace());
    } catch (const c10::Error& bad) {
      py::set_error(PyExc_RuntimeError, bad.what_without_backtrace());
    }
  });
}

void bind_vocoder_stream(py::module_& m) {
  py::class_<VocoderShape>(m, "VocoderShape")
      .def(py::init<>())
      .def_readwrite("upsample_rates", &VocoderShape::upsample_rates)
      .def_readwrite("upsample_kernel_sizes", &VocoderShape::upsample_kernel_sizes)
      .def_readwrite("resblock_kernel_sizes", &VocoderShape::resblock_kernel_sizes)
      .def_readwrite("resblock_dilation_sizes", &VocoderShape::resblock_dilation_sizes)
      .def_readwrite("upsample_initial_channel", &VocoderShape::upsample_initial_channel)
      .def_readwrite("num_embeddings", &VocoderShape::num_embeddings)
      .def_readwrite("embedding_dim", &VocoderShape::embedding_dim)
      .def_readwrite("num_speakers", &VocoderShape::num_speakers)
      .def_readwrite("num_styles", &VocoderShape::num_styles)
      .def_readwrite("num_f0_tokens", &VocoderShape::num_f0_tokens)
      .def_readwrite("num_style_tokens", &VocoderShape::num_style_tokens)
      .def_readwrite("default_speaker", &VocoderShape::default_speaker)
      .def_readwrite("default_named_style", &VocoderShape::default_named_style)
      .def_readwrite("var_pred_hidden_dim", &VocoderShape::var_pred_hidden_dim)
      .def_readwrite("var_pred_kernel_size", &VocoderShape::var_pred_kernel_size);

  py::class_<VocoderPacket>(m, "VocoderPacket")
      .def_readonly("slot", &VocoderPacket::slot)
      .def_readonly("start", &VocoderPacket::start, "First sample, counted from the slot's reset.")
      .def_readonly("samples", &VocoderPacket::samples, "[N], float32.")
      .def_readonly("units", &VocoderPacket::units, "(index of a unit, samples of the packet it made), in order.")
      .def_readonly("final", &VocoderPacket::final, "Whether nothing comes after it until `reset`.");

  py::class_<VocoderBatch>(m, "VocoderBatch")
      .def_readwrite("slots", &VocoderBatch::slots)
      .def_readwrite("fed", &VocoderBatch::fed)
      .def_readwrite("total", &VocoderBatch::total)
      .def_readwrite("codes", &VocoderBatch::codes)
      .def_readonly("frames", &VocoderBatch::frames)
      .def_readonly("inside", &VocoderBatch::inside);

  py::class_<VocoderStream>(m, "VocoderStream")
      .def(py::init([](const VocoderShape& shape, const Weights& weights, int64_t slots, at::ScalarType dtype,
                       int64_t chunk_frames, int64_t max_frames, int64_t max_units,
                       std::optional<int64_t> look_ahead_frames) {
             VocoderStreamOptions options{slots, dtype, chunk_frames, max_frames, max_units, look_ahead_frames};
             return std::make_unique<VocoderStream>(shape, weights, options);
           }),
           py::arg("shape"), py::arg("weights"), py::kw_only(), py::arg("slots"), py::arg("dtype"),
           py::arg("chunk_frames"), py::arg("max_frames"), py::arg("max_units"), py::arg("look_ahead_frames"))
      .def("open", &VocoderStream::open, Unlocked())
      .def("close", &VocoderStream::close, Unlocked(), py::arg("slot"))
      .def("accept", &VocoderStream::accept, Unlocked(), py::arg("slot"), py::arg("units"),
           py::arg("pitch") = py::none(), py::arg("style") = py::none(), py::arg("frames") = py::none())
      .def("ready", &VocoderStream::ready, Unlocked())
      .def("step", &VocoderStream::step, Unlocked())
      .def("step_with", &VocoderStream::step_with, Unlocked(), py::arg("compute"))
      .def("run", &VocoderStream::run, Unlocked(), py::arg("batch"))
      .def("spare_batch", &VocoderStream::spare_batch, Unlocked(), py::arg("rows"), py::arg("frames"),
           py::arg("inside"))
      .def("flush", &VocoderStream::flush, Unlocked(), py::arg("slot"))
      .def("reset", &VocoderStream::reset, Unlocked(), py::arg("slot"))
      .def("set_speaker", &VocoderStream::set_speaker, Unlocked(), py::arg("slot"), py::arg("speaker"))
      .def("set_named_style", &VocoderStream::set_named_style, Unlocked(), py::arg("slot"), py::arg("named_style"))
      .def_property_readonly("hop_samples", &VocoderStream::hop_samples)
      .def_property_readonly("delay_samples", &VocoderStream::delay_samples)
      .def_property_readonly("delay_units", &VocoderStream::delay_units);
}

void bind_hubert_stream(py::module_& m) {
  py::class_<HubertShape>(m, "HubertShape")
      .def(py::init<>())
      .def_readwrite("conv_layers", &HubertShape::conv_layers)
      .def_readwrite("layer_norm_extractor", &HubertShape::layer_norm_extractor)
      .def_readwrite("conv_bias", &HubertShape::conv_bias)
      .def_readwrite("layer_norm_first", &HubertShape::layer_norm_first)
      .def_readwrite("conv_pos_batch_norm", &HubertShape::conv_pos_batch_norm)
      .def_readwrite("normalize", &HubertShape::normalize)
      .def_readwrite("relu", &HubertShape::relu)
      .def_readwrite("encoder_embed_dim", &HubertShape::encoder_embed_dim)
      .def_readwrite("encoder_ffn_embed_dim", &HubertShape::encoder_ffn_embed_dim)
      .def_readwrite("encoder_attention_heads", &HubertShape::encoder_attention_heads)
      .def_readwrite("conv_pos", &HubertShape::conv_pos)
      .def_readwrite("conv_pos_groups", &HubertShape::conv_pos_groups)
      .def_readwrite("required_seq_len_multiple", &HubertShape::required_seq_len_multiple)
      .def_readwrite("output_layer", &HubertShape::output_layer);

  py::class_<Revision>(m, "Revision")
      .def_readonly("changed", &Revision::changed, "Units that differ from those handed out.")
      .def_readonly("first", &Revision::first, "Index of the first of them; the number of units where none does.")
      .def_readonly("tail", &Revision::tail, "Offline units from `first` on.");

  py::class_<HubertPacket>(m, "HubertPacket")
      .def_readonly("slot", &HubertPacket::slot)
      .def_readonly("start", &HubertPacket::start, "Index of the first unit in the turn.")
      .def_readonly("units", &HubertPacket::units)
      .def_readonly("provisional", &HubertPacket::provisional)
      .def_readonly("final", &HubertPacket::final, "Whether nothing comes after it until `reset`.")
      .def_readonly("revision", &HubertPacket::revision);

  py::class_<HubertBatch>(m, "HubertBatch")
      .def_readonly("input", &HubertBatch::input)
      .def_readonly("first", &HubertBatch::first)
      .def_readonly("full", &HubertBatch::full);

  py::class_<HubertStream>(m, "HubertStream")
      .def(py::init([](const HubertShape& shape, const Weights& hubert, const Weights& quantizer, int64_t slots,
                       at::ScalarType dtype, std::optional<int64_t> left_frames, int64_t chunk_frames,
                       std::optional<int64_t> look_ahead_frames, const std::string& norm,
                       std::optional<std::pair<at::Tensor, at::Tensor>> calibration, int64_t freeze_frames,
                       bool provisional, bool revise, int64_t buffer_samples) {
             HubertStreamOptions options;
             options.slots = slots;
             options.dtype = dtype;
             options.left_frames = left_frames;
             options.chunk_frames = chunk_frames;
             options.look_ahead_frames = look_ahead_frames;
             options.norm = parse_norm(norm);
             if (calibration) options.calibration = Calibration{calibration->first, calibration->second};
             options.freeze_frames = freeze_frames;
             options.provisional = provisional;
             options.revise = revise;
             options.buffer_samples = buffer_samples;
             return std::make_unique<HubertStream>(shape, hubert, quantizer, options);
           }),
           py::arg("shape"), py::arg("hubert"), py::arg("quantizer"), py::kw_only(), py::arg("slots"),
           py::arg("dtype"), py::arg("left_frames"), py::arg("chunk_frames"), py::arg("look_ahead_frames"),
           py::arg("norm"), py::arg("calibration"), py::arg("freeze_frames"), py::arg("provisional"),
           py::arg("revise"), py::arg("buffer_samples"))
      .def("open", &HubertStream::open, Unlocked())
      .def("close", &HubertStream::close, Unlocked(), py::arg("slot"))
      .def("accept", &HubertStream::accept, Unlocked(), py::arg("slot"), py::arg("samples"))
      .def("ready", &HubertStream::ready, Unlocked())
      .def("step", &HubertStream::step, Unlocked())
      .def("step_with", &HubertStream::step_with, Unlocked(), py::arg("compute"))
      .def("classify", &HubertStream::classify, Unlocked(), py::arg("input"), py::arg("first"))
      .def("flush", &HubertStream::flush, Unlocked(), py::arg("slot"), py::arg("end") = py::none())
      .def("reset", &HubertStream::reset, Unlocked(), py::arg("slot"))
      .def("accepted", &HubertStream::accepted, Unlocked(), py::arg("slot"))
      .def_property_readonly("hop_samples", &HubertStream::hop_samples);
}

}  // namespace spiritrt
