// Between a DMA and a design: words padded to the DMA's width, and one TLAST at the end of a batch of frames instead of one
// per frame. The batch is as long as the frames that came in up to the input's TLAST; the last result beat of a frame waits
// until its input has come in whole, so the end of a batch is known when its last beat passes.
module dp_frames #(
  parameter int IN = 8, IN_BEATS = 1, DMA_IN = 8,
  parameter int OUT = 8, DMA_OUT = 8
) (
  input  logic clk, rst_n,
  input  logic [DMA_IN-1:0] s_tdata, input logic s_tvalid, s_tlast, output logic s_tready,
  output logic [IN-1:0] in_tdata, output logic in_tvalid, input logic in_tready,
  input  logic [OUT-1:0] out_tdata, input logic out_tvalid, out_tlast, output logic out_tready,
  output logic [DMA_OUT-1:0] m_tdata, output logic m_tvalid, m_tlast, input logic m_tready
);
  localparam int W = IN_BEATS > 1 ? $clog2(IN_BEATS) : 1;
  logic [W-1:0] beat;
  logic [31:0] came, went, batch_end;    // frames in, frames out, frames in at the last TLAST
  wire in_end = s_tvalid && s_tready && beat == W'(IN_BEATS-1);
  wire hold = out_tlast && came == went;
  assign in_tdata = s_tdata[IN-1:0];
  assign in_tvalid = s_tvalid;
  assign s_tready = in_tready;
  assign m_tdata = DMA_OUT'(out_tdata);
  assign m_tvalid = out_tvalid && !hold;
  assign m_tlast = out_tlast && went + 1 == batch_end;
  assign out_tready = m_tready && !hold;
  always_ff @(posedge clk) begin
    if (!rst_n) begin
      beat <= '0; came <= '0; went <= '0; batch_end <= '0;
    end else begin
      if (s_tvalid && s_tready) beat <= beat == W'(IN_BEATS-1) ? '0 : beat + 1'b1;
      if (in_end) came <= came + 1;
      if (in_end && s_tlast) batch_end <= came + 1;
      if (out_tvalid && out_tready && out_tlast) went <= went + 1;
    end
  end
endmodule
